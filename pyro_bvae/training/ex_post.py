"""The prior fitted after training, by maximum likelihood on the aggregated posterior."""

from __future__ import annotations

import copy
from typing import Any

import pyro
import torch
from torch import Tensor, nn

from pyro_bvae.core.context import Context
from pyro_bvae.core.errors import InputError, check_count
from pyro_bvae.core.inputs.data import is_table
from pyro_bvae.core.inputs.public import exclusive
from pyro_bvae.core.module_modes import evaluating
from pyro_bvae.core.processes.progress import ProgressBar
from pyro_bvae.core.seeds import (
    NOISE_STREAM,
    VALIDATION_STREAM,
    seed_generators,
    seeded,
    stream_seed,
)
from pyro_bvae.datasets import Dataset
from pyro_bvae.datasets.rows import as_dataset
from pyro_bvae.training.batches import Batches, as_batches
from pyro_bvae.training.checks.dry_run import check_owned
from pyro_bvae.training.checks.nonfinite import TrainingError
from pyro_bvae.training.schedules import OneCycle
from pyro_bvae.vae import BetaVAE

# Upper limit on the norm of a gradient: the first draws may lie far from where the prior starts.
_CLIP = 10.0


@exclusive
def fit_ex_post_prior(
    vae: BetaVAE,
    data: Tensor | Dataset | Any,
    prior: nn.Module,
    *,
    epochs: int = 30,
    validation: Tensor | Dataset | None = None,
    batch_size: int = 128,
    learning_rate: float = 3e-2,
    progress: bool = True,
    seed: int = 0,
) -> BetaVAE:
    r"""Return a trained model with a prior that is fitted to its aggregated posterior.

    .. math:: \max_\psi \; \frac1N \sum_n \mathbb{E}_{q(z|x_n)} [\log p_\psi(z)]

    Draws are fresh at every step. Encoder and decoder are shared with the model that is given,
    which keeps its own prior; nothing of it is trained. The bound of the data gains exactly the
    KL by which the prior comes nearer,

    .. math:: \text{ELBO}_\psi - \text{ELBO} = KL(q(z) \,\|\, p(z)) - KL(q(z) \,\|\, p_\psi(z)),

    and samples are decoded where data were encoded. With few data a flexible prior learns the data
    by heart: ``validation`` keeps it from that.

    Args:
        vae: The trained model.
        data: Its training data: a tensor ``(N, D)``, a :class:`~pyro_bvae.datasets.Dataset`,
            or a torch loader.
        prior: The new prior, such as a :class:`~pyro_bvae.priors.MixturePrior` or a
            :class:`~pyro_bvae.priors.FlowPrior`; trained in place. Parts that it shares with the
            model, such as the encoder that a VampPrior looks through, stay as they are.
        epochs: Passes over the data.
        validation: Held-out data: the prior is that of the epoch in which draws of theirs are most
            probable.
        batch_size: Data in a step.
        learning_rate: Peak of a one-cycle schedule.
        progress: Show a progress bar.
        seed: Seed of data order and draws; the caller's generators are left alone.

    Returns:
        A model named after the given one with ``_ex_post`` behind. References: Ghosh et al. 2020 (a
        mixture of normals), Dai and Wipf 2019 (a second model of the latents).

    Raises:
        InputError: if the prior is the model's own, has nothing to train or another number of
            latents, if an argument is no positive number, or if the data cannot be used.
        TrainingError: if the log density of draws stops being finite.
    """
    check_count("epochs", epochs)
    check_count("batch_size", batch_size)
    if not 0 < learning_rate < float("inf"):
        raise InputError(f"'learning_rate' must be positive and finite, got {learning_rate}")
    fitted = BetaVAE(
        prior, vae.decoder, vae.encoder, missing=vae.missing, name=f"{vae.name}_ex_post"
    )
    run = _Run(vae, prior, learning_rate, epochs, seed)
    batches = run.ready(data)
    kept_out = None if validation is None else run.ready(validation)
    with evaluating(vae, prior), seeded(seed), pyro.validation_enabled(False):
        run.check(next(iter(batches.batches(batch_size, seed=seed, epoch=0))))
        draws = None if kept_out is None else run.validation_draws(kept_out, batch_size)
        with ProgressBar(
            range(epochs), disable=not progress, unit="epoch", desc="ex-post prior"
        ) as bar:
            for epoch in bar:
                run.epoch(batches, batch_size, epoch)
                bar.set_postfix({"log p(z)": f"{run.score(draws):.4g}"})
        run.restore_best()
    return fitted


class _Run:
    """The fit of a prior to the draws of a model's guide."""

    def __init__(
        self, vae: BetaVAE, prior: nn.Module, learning_rate: float, epochs: int, seed: int
    ) -> None:
        if not isinstance(prior, nn.Module) or prior is vae.prior:
            itself = prior is vae.prior
            got = "the prior of the model itself" if itself else type(prior).__name__
            raise InputError(
                f"'prior' must be a module of its own, such as a MixturePrior, got {got}"
            )
        own = {id(parameter) for parameter in vae.parameters()}
        self.parameters = [
            part for part in prior.parameters() if part.requires_grad and id(part) not in own
        ]
        if not self.parameters:
            raise InputError(
                f"'prior' ({type(prior).__name__}) has no parameter of its own that requires a"
                " gradient, so there is nothing to fit: a MixturePrior or a FlowPrior has"
            )
        self.vae, self.prior, self.seed, self.epochs = vae, prior, seed, epochs
        self.schedule = OneCycle(learning_rate)
        self.optimizer = torch.optim.Adam(self.parameters, lr=learning_rate)
        self.mean, self.best = float("nan"), -float("inf")
        self.best_state: dict[str, Any] | None = None

    def ready(self, data: Any) -> Batches:
        """Return data as batches that the model can take."""
        some = next(self.vae.parameters(), self.parameters[0])
        data = as_dataset(data, self.vae) if is_table(data) else data
        return as_batches(data, some.dtype, some.device, self.vae.check_data)

    def draw(self, x: Tensor, context: Context | None) -> Tensor:
        """Draw the latents of some data, one draw each, ``(B, L)``."""
        with torch.no_grad():
            drawn: Tensor = self.vae.posterior(x, context).sample()
        return drawn

    def check(self, batch: tuple[Tensor, Context | None]) -> None:
        """Raise unless the prior has a density at draws of the guide.

        Raises:
            InputError: if it is one of other latents, or uses weights that it does not own.
        """
        drawn, law = self.draw(*batch), self.prior()
        if tuple(law.event_shape) != tuple(drawn.shape[1:]) or len(law.batch_shape):
            raise InputError(
                "'prior' must return a distribution with batch shape () and event shape"
                f" {tuple(drawn.shape[1:])}, as the guide has, got batch shape"
                f" {tuple(law.batch_shape)} and event shape {tuple(law.event_shape)}"
            )
        check_owned(law.log_prob(drawn).mean(), self.parameters, self.vae, prior=self.prior)

    def validation_draws(self, data: Batches, batch_size: int) -> Tensor:
        """Return draws of validation data, the same for every epoch."""
        seed_generators(stream_seed(self.seed, VALIDATION_STREAM))
        return torch.cat(
            [self.draw(*batch) for batch in data.batches(batch_size, seed=self.seed, epoch=0)]
        )

    def epoch(self, data: Batches, batch_size: int, epoch: int) -> None:
        """Take a step for each batch."""
        seed_generators(stream_seed(self.seed, epoch, NOISE_STREAM))
        steps, total = data.num_batches(batch_size), 0.0
        for index, batch in enumerate(data.batches(batch_size, seed=self.seed, epoch=epoch)):
            for group in self.optimizer.param_groups:
                group["lr"] = float(self.schedule(epoch + index / steps, self.epochs))
            loss = -self.prior().log_prob(self.draw(*batch)).mean()
            if not bool(torch.isfinite(loss)):
                raise TrainingError(
                    "the log density of draws under the prior stopped being finite in epoch"
                    f" {epoch + 1}: lower the learning rate"
                )
            # Gradients of these parameters alone: a prior may share the encoder.
            for parameter, gradient in zip(
                self.parameters,
                torch.autograd.grad(loss, self.parameters, allow_unused=True),
                strict=True,
            ):
                parameter.grad = gradient
            nn.utils.clip_grad_norm_(self.parameters, _CLIP)
            self.optimizer.step()
            total += float(loss.detach())
        self.optimizer.zero_grad(set_to_none=True)
        self.mean = -total / steps

    def score(self, draws: Tensor | None) -> float:
        """Return the mean log density of validation draws, else of the epoch's; keep the best."""
        if draws is None:
            return self.mean
        with torch.no_grad():
            score = float(self.prior().log_prob(draws).double().mean())
        if score > self.best:
            self.best, self.best_state = score, copy.deepcopy(self.prior.state_dict())
        return score

    def restore_best(self) -> None:
        """Go back to the prior of the best epoch, where there are held-out data to tell."""
        if self.best_state is not None:
            self.prior.load_state_dict(self.best_state)
