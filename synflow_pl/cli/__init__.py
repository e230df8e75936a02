"""The command line: the one room that knows all the others."""

COMMANDS = {
    **{
        name: (name, name)
        for name in ("demo", "experiment", "multishot", "prune", "report", "sweep")
    },
    "compact": ("export", "compact_command"),
    "export": ("export", "export_command"),
}
"""Subcommands that are not LightningCLI's, each with the module here and the function in it that
takes its arguments.
"""
OF_THE_TRAINER = ("fit", "predict", "test", "validate")
"""Subcommands that are methods of Lightning's Trainer."""
