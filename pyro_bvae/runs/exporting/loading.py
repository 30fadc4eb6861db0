"""The code that loads the files of an export, for its model card."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

_ROWS = 5


def loading(described: Mapping[str, Any], names: Sequence[str]) -> list[str]:
    """Return the lines on the files of an export, with code that runs in their folder.

    Args:
        described: The content of ``model.json``.
        names: The files.
    """
    lines = [
        "The code below runs in the folder of these files. N is any number of data.",
        "",
        *_table("encoder", described),
        *_table("decoder", described),
    ]
    blocks = {"encoder.pt2": _pt2(described), "encoder.onnx": _onnx(described)}
    for name, code in blocks.items():
        if name in names:
            files = f"`{name}`, `{name.replace('encoder', 'decoder')}`"
            lines += ["", f"### {files}", "", "```python", *code, "```"]
    return [
        *lines,
        "",
        "### `weights.safetensors`",
        "",
        "The weights alone, and the whole model, for which pyro_bvae must be installed:",
        "",
        "```python",
        *_weights(described),
        "```",
        "",
        "`model.json` has the configuration, the shapes and the names of the features, which are"
        " in the metadata of `weights.safetensors` too.",
    ]


def _weights(described: Mapping[str, Any]) -> list[str]:
    made = _made(described, "torch")
    further = [name for name in described["decoder"]["inputs"] if name != "z"]
    context = ", ".join(f"{name}={made[name]}" for name in further)
    return [
        "from safetensors.torch import load_file",
        "",
        'weights = load_file("weights.safetensors")',
        "",
        *(["import torch"] if further else []),
        f"from pyro_bvae import {'Context, ' if further else ''}runs",
        "",
        'vae = runs.from_export(".")',
        f"print(vae.generate({_ROWS}{f', Context({context})' if further else ''}))",
    ]


def _table(name: str, described: Mapping[str, Any]) -> list[str]:
    return [
        f"- {name}, {side}: "
        + ", ".join(
            f"`{key}` ({', '.join(map(str, shape))})"
            for key, shape in described[name][side].items()
        )
        for side in ("inputs", "outputs")
    ]


def _made(described: Mapping[str, Any], library: str) -> dict[str, str]:
    """Return the code that makes each input: zeros, size factors of 1, the first batch."""
    shapes = {**described["encoder"]["inputs"], **described["decoder"]["inputs"]}
    made = {}
    for name, (_, size) in shapes.items():
        dtype = ', dtype="float32"' if library == "np" else ""
        kind = "ones" if name == "size_factor" else "zeros"
        made[name] = f"{library}.{kind}(({_ROWS}, {size}){dtype})"
        if name == "covariates" and described["data"]["batches"]:
            made[name] = f"{library}.eye({size}{dtype})[[0] * {_ROWS}]"
    return made


def _pt2(described: Mapping[str, Any]) -> list[str]:
    made = _made(described, "torch")
    first = [name for name in described["encoder"]["inputs"] if name != "x"]
    further = [name for name in described["decoder"]["inputs"] if name != "z"]
    result = next(iter(described["decoder"]["outputs"]))
    to_encode = ", ".join(["x", *(f"{name}={name}" for name in first)])
    to_decode = ", ".join(['codes["mean"]', *(f"{name}={name}" for name in further)])
    return [
        "import torch",
        "",
        'encoder = torch.export.load("encoder.pt2").module()',
        'decoder = torch.export.load("decoder.pt2").module()',
        f"x = {made['x']}  # your data",
        *(f"{name} = {made[name]}" for name in further),
        f"codes = encoder({to_encode})",
        'print(codes["mean"], codes["scale"])',
        f"x_again = decoder({to_decode})",
        f'print(x_again["{result}"])',
    ]


def _onnx(described: Mapping[str, Any]) -> list[str]:
    made = _made(described, "np")
    first = [name for name in described["encoder"]["inputs"] if name != "x"]
    further = [name for name in described["decoder"]["inputs"] if name != "z"]
    given = ", ".join(['"x": x', *(f'"{name}": {name}' for name in first)])
    result = next(iter(described["decoder"]["outputs"]))
    codes = ", ".join(['"z": mean', *(f'"{name}": {name}' for name in further)])
    return [
        "import numpy as np",
        "import onnxruntime",
        "",
        'encoder = onnxruntime.InferenceSession("encoder.onnx")',
        'decoder = onnxruntime.InferenceSession("decoder.onnx")',
        f"x = {made['x']}  # your data",
        *(f"{name} = {made[name]}" for name in further),
        f'mean, scale = encoder.run(["mean", "scale"], {{{given}}})',
        "print(mean, scale)",
        f'(x_again,) = decoder.run(["{result}"], {{{codes}}})',
        "print(x_again)",
    ]
