"""Command line of synflow_pl: one module per subcommand, and what the subcommands share."""

COMMANDS = {
    **{
        name: (name, name)
        for name in ("demo", "experiment", "multishot", "prune", "report", "sweep")
    },
    "compact": ("export", "compact_command"),
    "export": ("export", "export_command"),
}
"""Subcommands beside LightningCLI's: the module of this package and its function for each.

The function takes the arguments that follow the subcommand's name.
"""
TRAINER_COMMANDS = ("fit", "predict", "test", "validate")
"""Subcommands that are methods of Lightning's Trainer."""
EVALUATIONS = ("predict", "test", "validate")
"""Subcommands of Lightning's Trainer that evaluate a network without training it."""
