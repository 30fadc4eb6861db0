"""Pictures of a model in training, as a callback of ``fit``."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyro_bvae import plots
from pyro_bvae.core.disk.digests import write_files
from pyro_bvae.core.errors import check_count
from pyro_bvae.core.inputs.public import public
from pyro_bvae.datasets import Dataset
from pyro_bvae.training.history import Row

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_NUM_RECONSTRUCTIONS, _DPI = 10, 100


@public
class Snapshots:
    """Reconstructions and samples every few epochs, as a callback of :func:`~pyro_bvae.fit`.

    The same data and the same latents each time, so that two pictures differ by the training alone.
    They take nothing from the randomness of the training.

    Args:
        vae: The model in training.
        data: Data to reconstruct, of which the first ten are taken.
        directory: Folder of the pictures, ``epoch-0005-reconstructions.png`` and
            ``epoch-0005-samples.png``.
        every: Epochs between two snapshots.

    Raises:
        InputError: if ``every`` is no positive integer.
    """

    #: Data, and samples, that are looked at.
    most = 40

    def __init__(self, vae: Any, data: Dataset, directory: str | Path, every: int = 5) -> None:
        check_count("every", every)
        self.vae, self.directory, self.every = vae, Path(directory), every
        self.data = data[: self.most]

    def __call__(self, row: Row) -> None:
        """Draw, if it is time."""
        epoch = int(row["epoch"])
        if epoch % self.every:
            return
        pictures = {}
        for name, figure in (
            ("reconstructions", self._reconstructions()),
            ("samples", self._samples(epoch)),
        ):
            stream = BytesIO()
            figure.savefig(stream, format="png", dpi=_DPI)
            pictures[self.directory / f"epoch-{epoch:04d}-{name}.png"] = stream.getvalue()
        write_files(pictures)

    def _reconstructions(self) -> Figure:
        few = self.data[:_NUM_RECONSTRUCTIONS].to(device=self._device())
        means = self.vae.reconstruct(few.x, few.context)
        if few.image_shape is None:
            title = "Data and their reconstructions"
            return plots.features(few.x.cpu(), means.cpu(), title, few.feature_names)
        return plots.reconstructions(few.x.cpu(), means.cpu(), few.image_shape)

    def _samples(self, epoch: int) -> Figure:
        data = self.data.to(device=self._device())
        count = self.most if data.context is None else len(data)
        samples = self.vae.generate(count, data.context, seed=0).cpu()
        title = f"Draws from the prior, decoded, after {epoch} epochs"
        if data.image_shape is None:
            return plots.features(samples, None, title, data.feature_names)
        return plots.image_grid(samples, data.image_shape, title, num=count)

    def _device(self) -> Any:
        return next(self.vae.parameters()).device
