"""How a refiner begins: from the server's last checkpoint, else from published weights, else anew."""

from __future__ import annotations

from pathlib import Path

from streamsplit.errors import CheckpointError
from streamsplit.refinement.buffer import BufferSettings
from streamsplit.refinement.hybrid import HybridSettings
from streamsplit.refinement.refiner import Refiner, RefinerSettings
from streamsplit.server.checkpoint import read_file, read_json
from streamsplit.server.models import RevisionFiles, torch_device
from streamsplit.server.settings import ServerSettings
from streamsplit.weights.pretrained import start_encoder

CHECKPOINTS = "checkpoints"  # folder under the server's data
CHECKPOINT = "refiner.safetensors"
CHECKPOINT_INFO = "refiner.json"


def start_refiner(settings: ServerSettings, files: RevisionFiles) -> tuple[Refiner, bool]:
    """The refiner, and whether it goes on from a checkpoint.

    Raises CheckpointError for a checkpoint that cannot be read or whose revision is not among `files`.
    """
    encoder = start_encoder(settings.encoder).to(torch_device(settings.device))
    refiner = Refiner(encoder, refiner_settings(settings), settings.training.seed)
    resumed = _restore(refiner, settings.data_path / CHECKPOINTS / CHECKPOINT, files)
    if settings.encoder.pretrained and not resumed:
        _begin_fitted(refiner, settings.encoder.first_space)
    return refiner, resumed


def refiner_settings(settings: ServerSettings) -> RefinerSettings:
    """The refinement room's settings from the server's sections."""
    training, loss, audio = settings.training, settings.loss, settings.audio
    frames = max(2, round(settings.aggregation.temporal_window * 100 / audio.stride_frames))
    return RefinerSettings(
        learning_rate=training.learning_rate,
        batch_windows=training.batch_size,
        most_passes=training.most_passes,
        min_devices=settings.aggregation.min_devices_per_update,
        warm_start_windows=training.warm_start_windows,
        loss=HybridSettings(
            version=loss.version,
            wasserstein_weight=loss.sliced_wasserstein.weight,
            projections=loss.sliced_wasserstein.num_projections,
            laplacian_weight=loss.laplacian.weight,
            neighbours=loss.laplacian.k_neighbors,
        ),
        buffer=BufferSettings(frames=frames),
    )


def current_revision(folder: Path) -> tuple[str, int] | None:
    """Revision and space that the last checkpoint names; None before the first."""
    values = read_json(folder / CHECKPOINTS / CHECKPOINT_INFO)
    return None if values is None else (str(values["revision"]), int(values["space"]))


def _restore(refiner: Refiner, path: Path, files: RevisionFiles) -> bool:
    if not path.exists():
        return False
    refiner.restore(read_file(path))
    if refiner.revision not in files:
        raise CheckpointError(
            f"{path}: names revision {refiner.revision[:12]}, whose files are not in {files.folder}; "
            "restore them or use another server.data_dir"
        )
    return True


def _begin_fitted(refiner: Refiner, space: int) -> None:
    """Has a refiner begin with a projection that is fitted already: published weights keep their space."""
    refiner.warm_started, refiner.space = True, space
    refiner.lineage.add(refiner.lineage.latest._replace(space=space))
