"""Report a pruning: messages, figures in the loggers and the file of masks."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Literal

from pytorch_lightning import Trainer
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger
from pytorch_lightning.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor, nn

from synflow_pl.diagnosis import DeadNetwork, Diagnosis, MaskHistory, diagnose
from synflow_pl.flow import Connectivity
from synflow_pl.masks import Masks
from synflow_pl.pruners import Pruner
from synflow_pl.pruners.recording import RecordingPruner
from synflow_pl.training.distributed import Ranks
from synflow_pl.training.sharded_masks import ShardedMasks
from synflow_pl.training.training_clock import progress
from synflow_pl.training.visualization import (
    show_density,
    show_diagnosis,
    show_masks,
    show_rounds,
    show_update,
    wants_pictures,
)

__all__ = ["PruningReport", "diagnose_rounds"]


class PruningReport:
    """Report the pruning of one network during one fit.

    Args:
        label: Name of the network if several are pruned, which becomes part of messages and file
            names; else empty.

    Attributes:
        heading: Beginning of messages.
    """

    def __init__(self, label: str = "") -> None:
        self.heading = f"Pruning {label}" if label else "Pruning"
        self._label = label
        self._recording: RecordingPruner | None = None

    def info(self, message: str) -> None:
        """Print a message on rank 0.

        Args:
            message: Message, which is put after the heading.
        """
        rank_zero_info(f"{self.heading}: {message}")

    def warn(self, message: str) -> None:
        """Issue a warning on rank 0.

        Args:
            message: Message, which is put after the heading.
        """
        rank_zero_warn(f"{self.heading}: {message}")

    def recording_pruner(
        self, trainer: Trainer, pruner: Pruner, rounds: int | Literal["auto"] | None
    ) -> RecordingPruner | None:
        """Return a pruner that records its rounds, or ``None`` if no logger shows figures.

        Args:
            trainer: Trainer of the network.
            pruner: Pruner to record.
            rounds: Number of rounds, or ``"auto"``; ``None`` uses the pruner's own number.
        """
        return RecordingPruner(pruner, rounds) if wants_pictures(trainer.loggers) else None

    def add(self, recording: RecordingPruner) -> None:
        """Store a recording until :meth:`show`, after those of earlier calls.

        Args:
            recording: Pruner that has recorded its rounds.
        """
        self._recording = recording.after(self._recording)

    def clear(self) -> None:
        """Discard the recordings."""
        self._recording = None

    def show_round(self, trainer: Trainer, index: int, density: float) -> None:
        """Log the density after a round.

        Args:
            trainer: Trainer of the network.
            index: Index of the round.
            density: Density after the round.
        """
        show_density(trainer.loggers, index, density, self._label)

    def show_update(self, trainer: Trainer, diagnosis: Diagnosis, fraction: float) -> None:
        """Log a diagnosis after an update of the masks, at the present step, counted from 0.

        Args:
            trainer: Trainer of the network.
            diagnosis: Diagnosis of the network.
            fraction: Fraction of the kept weights of each layer that was dropped.
        """
        if trainer.is_global_zero:
            # Lightning logs the metrics of the step with this number.
            step = progress(trainer) - 1
            show_update(trainer.loggers, step, diagnosis, fraction, self._label)

    def save_masks(self, trainer: Trainer, ranks: Ranks, masks: Masks) -> None:
        """Write masks into the folder of the logger; every rank has to call this method.

        Args:
            trainer: Trainer of the network. A logger other than CSVLogger and TensorBoardLogger
                gets no file.
            ranks: Ranks of the training.
            masks: Masks of the network.
        """
        folder = trainer.log_dir  # a collective call, since Lightning broadcasts the value
        name = f"masks_{self._label}.safetensors" if self._label else "masks.safetensors"

        # Ranks other than 0 may have no logger, if torchrun or SLURM started them.
        logs = folder is not None and isinstance(trainer.logger, (CSVLogger, TensorBoardLogger))
        path = Path(folder or "") / name
        if isinstance(masks, ShardedMasks):
            # The file was written before the network was sharded, unless another run is resumed.
            if not ranks.run_on_rank_zero(lambda: logs and not path.exists()):
                return
            masks = masks.gather()

        def save() -> None:
            if logs:
                masks.save(path)

        ranks.run_on_rank_zero(save)

    def show(
        self,
        trainer: Trainer,
        network: nn.Module,
        masks: Masks,
        diagnosis: Diagnosis,
        inputs: tuple[Tensor, ...],
        how: str,
        when: str,
        notes: Iterable[str],
    ) -> None:
        """Print the diagnosis, and log it with the masks and the recorded rounds.

        Args:
            trainer: Trainer of the network.
            network: Pruned network.
            masks: Masks of the network.
            diagnosis: Diagnosis of the network.
            inputs: Example inputs of the network, which only rank 0 needs.
            how: Subject and verb of the first message, such as ``"SynFlow kept"``.
            when: End of the first message, such as ``" in 3.0 s"``.
            notes: Notes of the pruner, each of which is printed.
        """
        self.info(
            f"{how} {diagnosis.kept:,} of {diagnosis.total:,} weights"
            f" (density {diagnosis.density:.6g}, effective"
            f" {diagnosis.effective_density:.6g}){when}."
        )
        rank_zero_info(diagnosis.table())
        for note in notes:
            self.info(f"{note}.")
        if trainer.is_global_zero:
            show_diagnosis(trainer.loggers, diagnosis, self._label, trainer.global_step)
            show_masks(trainer.loggers, network, masks, self._label)
            if self._recording is not None:
                show_rounds(trainer.loggers, network, inputs, masks, self._recording, self._label)
        self.clear()

    def check_collapse(self, diagnosis: Diagnosis, on_collapse: str, advice: str) -> None:
        """Raise an error or issue a warning if the network or a layer has collapsed.

        Args:
            diagnosis: Diagnosis of the network.
            on_collapse: ``"error"`` or ``"warn"``, for a network that is disconnected.
            advice: Advice that is added to the message on a network that is disconnected.

        Raises:
            DeadNetwork: If no path of kept weights connects input and output, and ``on_collapse``
                is ``"error"``.
        """
        if message := diagnosis.collapse:
            if not diagnosis.alive:
                message += advice
                if on_collapse == "error":
                    raise DeadNetwork(f"{message}, or on_collapse warn to train it anyway")
            self.warn(message)


def diagnose_rounds(
    network: nn.Module,
    masks: Masks,
    inputs: tuple[Tensor, ...],
    history: MaskHistory | None,
    spectra: bool = False,
) -> Diagnosis:
    """Return the diagnosis of a network, with the round that disconnected it if there is one.

    Args:
        network: Pruned network.
        masks: Masks of the network.
        inputs: Example inputs of the network.
        history: History of the masks over the rounds, or ``None``.
        spectra: Whether to compute spectra, as in :func:`synflow_pl.diagnose`.
    """
    diagnosis = diagnose(network, masks, example_input=inputs, spectra=spectra)
    if diagnosis.alive or history is None:
        return diagnosis
    return replace(diagnosis, died=history.died(Connectivity(network, inputs)))
