"""The guide learns the posterior of data that the model draws, and the model stays."""

from __future__ import annotations

from typing import Any

from torch import nn

from pyro_bvae.core.errors import InputError, check_count
from pyro_bvae.core.inputs.data import is_table, named
from pyro_bvae.core.inputs.public import exclusive
from pyro_bvae.datasets import Dataset, LazyDataset
from pyro_bvae.datasets.rows import as_dataset
from pyro_bvae.training.fitting import fit
from pyro_bvae.training.history import History
from pyro_bvae.training.improvement.guide import held_still
from pyro_bvae.training.objectives.sleep import SleepPhase
from pyro_bvae.vae import BetaVAE


@exclusive
def sleep_phase(vae: BetaVAE, data: Any, *, epochs: int = 30, **options: Any) -> History:
    r"""Train the guide of a model by :class:`~pyro_bvae.training.SleepPhase`, in place.

    .. math:: \min_\phi \; \mathbb{E}_{p(z) p(x \mid z)} [- \log q_\phi(z \mid x)]

    Decoder and prior stay as they are to the bit, and so does the evidence; its importance weights
    get lighter tails (Bornschein and Bengio 2015).

    Args:
        vae: The trained model. Its prior must not look through the encoder.
        data: The training data, a tensor ``(N, D)`` or a data set, whose contexts and missing
            entries the drawn data have.
        epochs: Passes over the data, in which as many are drawn as there are.
        **options: Further options of :func:`~pyro_bvae.fit`, such as ``batch_size``,
            ``learning_rate`` and ``seed``.

    Returns:
        The metrics of each epoch.

    Raises:
        InputError: for another model or other data, and as of :func:`~pyro_bvae.fit`.
    """
    if not isinstance(vae, BetaVAE):
        raise InputError(f"'vae' must be a BetaVAE, got {named(vae)}")
    check_count("epochs", epochs)
    data = as_dataset(data, vae) if is_table(data) else data
    if not isinstance(data, Dataset | LazyDataset):
        raise InputError(f"'data' must be a tensor (N, D) or a data set, got {named(data)}")
    parts = [part for part in (vae.prior, vae.decoder) if isinstance(part, nn.Module)]
    # Random counts cannot be captured, and a compiler would not repay itself.
    fixed: dict[str, Any] = {"objective": SleepPhase(), "compile": False, "epochs": epochs}
    with held_still(parts):
        return fit(vae, data, **fixed, **options)
