r"""A network whose layers, and not its first alone, depend on a condition: here on log β."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from pyro_bvae.core.errors import InputError, check_count


class ModulatedMLP(nn.Module):
    r"""A multilayer perceptron with layers scaled and shifted by its last input, log β.

    .. math::
        h \mapsto (1 + A \phi) \odot h + B \phi, \qquad \phi_c = \operatorname{silu} (v_c \log \beta
        + u_c),

    feature-wise linear modulation (Perez et al. 2018) after each hidden affine map, with learned
    functions φ of log β that start with their bends at equal distances from log ``low`` to log
    ``high``. A and B start at zero: a perceptron that knows nothing of β. A β outside of the range
    counts as its nearer end. One network for many β needs more than β among its inputs (Bae et al.
    2022): the latents that a large β turns off have to be shut in encoder and decoder.

    Args:
        in_features: Size D + 1 of the last dimension of the input, whose last entry is log β.
        out_features: Size F of the last dimension of the output.
        hidden: Widths of the hidden layers; empty for an affine map.
        low: The least β, positive.
        high: The largest, above ``low``.
        modulate_input: Whether the D inputs are modulated too: a decoder can so close a latent.
        modulate_output: Whether the outputs are: an encoder can so give the prior for a latent.
        num_functions: How many functions φ there are, at least 2.
        activation: Makes the module between layers.

    Raises:
        InputError: if an argument cannot be used.

    Shape:
        ``(*, D + 1)`` to ``(*, F)``.
    """

    ends: Tensor

    def __init__(
        self,
        in_features: int,
        out_features: int,
        hidden: Sequence[int] = (400, 400),
        *,
        low: float,
        high: float,
        modulate_input: bool = False,
        modulate_output: bool = False,
        num_functions: int = 32,
        activation: Callable[[], nn.Module] = nn.SiLU,
    ) -> None:
        super().__init__()
        for name, value in (
            ("in_features", in_features),
            ("out_features", out_features),
            ("num_functions", num_functions),
        ):
            check_count(name, value)
        if in_features < 2 or num_functions < 2:
            raise InputError(
                f"'in_features' and 'num_functions' must be at least 2, got {in_features} and"
                f" {num_functions}"
            )
        if not 0 < low < high < math.inf:
            raise InputError(f"'low' and 'high' must be positive and rising, got {low} and {high}")
        self.in_features, self.out_features = in_features, out_features
        widths = (in_features - 1, *hidden, out_features)
        self.maps = nn.ModuleList(nn.Linear(*sizes) for sizes in pairwise(widths))
        self.activation = activation()
        modulated = (modulate_input, *[True for _ in hidden], modulate_output)
        self.modulations = nn.ModuleList(
            _Modulation(num_functions, width) if wanted else nn.Identity()
            for width, wanted in zip(widths, modulated, strict=True)
        )
        bends = torch.linspace(math.log(low), math.log(high), num_functions)
        self.register_buffer("ends", bends[[0, -1]])
        first = nn.Linear(1, num_functions)
        with torch.no_grad():
            first.bias.copy_(-first.weight.normal_().squeeze(1) * bends)
        self.functions = nn.Sequential(first, nn.SiLU())

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(*, D + 1)`` to ``(*, F)``."""
        # Contiguous, since a product with rows of odd strides is slower than the copy.
        h, log_beta = x[..., :-1].contiguous(), x[..., -1:]
        known = self.functions(torch.minimum(torch.maximum(log_beta, self.ends[0]), self.ends[1]))
        for index, (modulation, affine) in enumerate(
            zip(self.modulations, self.maps, strict=False)
        ):
            h = _modulated(modulation, h, known)
            h = affine(self.activation(h) if index else h)
        return _modulated(self.modulations[-1], h, known)


class _Modulation(nn.Module):
    """Scale and shift of a layer, linear in functions of β; they start as 1 and 0."""

    def __init__(self, num_functions: int, width: int) -> None:
        super().__init__()
        self.scale, self.shift = (nn.Linear(num_functions, width, bias=False) for _ in range(2))
        nn.init.zeros_(self.scale.weight)
        nn.init.zeros_(self.shift.weight)

    def forward(self, h: Tensor, known: Tensor) -> Tensor:
        return torch.addcmul(h + self.shift(known), h, self.scale(known))


def _modulated(modulation: nn.Module, h: Tensor, known: Tensor) -> Tensor:
    modulated: Tensor = modulation(h, known) if isinstance(modulation, _Modulation) else h
    return modulated
