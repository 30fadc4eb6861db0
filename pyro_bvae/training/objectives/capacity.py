"""Controlled capacity: the mean KL is held at so many nats, which may rise as training goes on."""

from __future__ import annotations

from pyro.poutine.util import is_validation_enabled
from torch import Tensor
from torch.distributions import kl_divergence

from pyro_bvae.core.errors import InputError
from pyro_bvae.core.inputs.public import public
from pyro_bvae.training.objectives.kl import KLObjective, Latent, check_number


@public
class ControlledCapacity(KLObjective):
    r"""Controlled capacity (Burgess et al. 2018), for ``pyro.infer.SVI`` and ``fit``.

    .. math::
        - \sum_n \mathbb{E}_{q(z \mid x_n)} \log p(x_n \mid z)
        + \gamma N \, \Bigl| \frac1N \sum_n KL(q(z \mid x_n) \,\|\, p(z)) - C \Bigr|, \qquad C =
        \beta \cdot capacity,

    in nats, over the N data of a batch (those of the whole plate, where it is subsampled).

    The β of the program is here no weight of the KL but the share of the capacity that is open: 1,
    or a program without β, is all of it. So progress comes from outside in each step, and the
    objective has no state that a checkpoint could miss. The rise of the reference, from 0 over the
    first 20 epochs, is::

        fit(vae, data, beta=LinearWarmup(1.0, 20), objective=ControlledCapacity(25.0))

    and with stock SVI ``svi.step(x, beta=min(1.0, step / 100_000))``. The share is read from the
    scale of the latent site, so no other scale may be around it; it is one number for all data. It
    is no β of measurements after training either: there, the objective is that of no one β.

    The KL is a closed form where Pyro knows one; else it is the mean of ``log q - log p`` of the
    draws, whose distance from C is a little too large on average. It is an objective and no bound.

    Args:
        capacity: The mean KL in nats at β = 1, at least 0.
        gamma: Weight γ of the distance from it, positive. The gradient grows with it: ``fit`` clips
            at 200 a datum by default.
        num_particles: Draws for each datum, at least 1.
        data_plate: Name of the data plate, where the latent has more than one.

    Raises:
        InputError: if an argument cannot be used; at a step, if β differs between data, and as of
            :class:`~pyro_bvae.training.objectives.kl.KLObjective`.
    """

    def __init__(
        self,
        capacity: float,
        gamma: float = 1000.0,
        num_particles: int = 1,
        *,
        data_plate: str | None = None,
    ) -> None:
        check_number("capacity", capacity)
        check_number("gamma", gamma, positive=True)
        super().__init__(num_particles, data_plate=data_plate)
        self.capacity, self.gamma = float(capacity), float(gamma)

    def __repr__(self) -> str:
        settings = f"gamma={self.gamma}, num_particles={self.num_particles}"
        return f"ControlledCapacity({self.capacity}, {settings})"

    def kl(self, latent: Latent) -> Tensor:
        """Return the KL in the batch shape of the latent, ``(N,)``."""
        guide, model = latent.guide, latent.model
        try:
            kl: Tensor = kl_divergence(guide["fn"], model["fn"])
        except NotImplementedError:
            kl = guide["unscaled_log_prob"] - model["unscaled_log_prob"]
        return kl

    def penalty(self, latent: Latent, kl: Tensor) -> Tensor:
        r"""Return :math:`\gamma \, |\sum_n KL_n - N C|`."""
        shares = latent.weights / latent.subsampling
        # Tensors are looked at with Pyro's validation only: to look is to wait for the device.
        if is_validation_enabled() and not bool((shares == shares.flatten()[0]).all()):
            low, high = float(shares.min()), float(shares.max())
            raise InputError(
                "'beta' must be one number for all data, the share of the capacity that is open,"
                f" got values from {low:.4g} to {high:.4g}"
            )
        total = latent.subsampling * kl.sum()
        return self.gamma * (total - latent.num_data * self.capacity * shares.mean()).abs()
