"""Messages in the words of the command line: its options in place of Python's arguments."""

from __future__ import annotations

import re
from collections.abc import Sequence

from pyro_bvae.cli.usage import options_of

# Python's words, the option that they mean, and how it is typed.
_PHRASES = (
    ("BetaVAE(..., missing=True)", "missing", "--missing nan"),
    ("missing=True", "missing", "--missing nan"),
    ("min_counts=1", "min_counts", "--min-counts 1"),
    ("'root'", "data_root", "--data-root"),
    ("'nats'", "target_rate", "--target-rate"),
    ("'every'", "snapshots", "--snapshots"),
    ("'beta'", "betas", "--betas"),
    ("'target_rates'", "target_rate", "--target-rate"),
    ("latents=[0, 1]", "latents", "--latents 0 1"),
    ("LinearPath()", "paths", "--paths linear"),
    ("take AggregateRange()", "deviations", "leave out --deviations"),
)
# Words before a name in quotes that is no argument.
_NOUNS = "(column|columns|key|layer|site|plate|label|array|set|mean)"
# The kind of a name in messages, where it is not that of its option.
_KINDS = {
    "data set": "dataset", "binarization": "binarize", "family": "families", "path": "paths",
}  # fmt: skip


def as_typed(message: str, command: type, words: Sequence[str]) -> str:
    """Return a message with the options of a command as they are typed.

    Args:
        message: It names an argument in quotes, ``'latent_dim'``, or the kind of a name,
            ``unknown prior``.
        command: The command, whose options have the names of the arguments.
        words: The command line, whose words stay as they are.
    """
    options = options_of(command)
    for phrase, name, typed in _PHRASES:
        if name in options:
            message = message.replace(phrase, typed)

    def flag(quoted: re.Match[str]) -> str:
        name = quoted[2]
        is_option = quoted[1] is None and name in options and name not in words
        return options[name].flag if is_option else quoted[0]

    def unknown(found: re.Match[str]) -> str:
        name = _KINDS.get(found[1], found[1])
        return f"unknown {options[name].flag} '" if name in options else found[0]

    def changed(found: re.Match[str]) -> str:
        return f"{options[found[1]].flag} was " if found[1] in options else found[0]

    message = re.sub(r"(?<=[:,] )(\w+) was ", changed, message)
    message = re.sub(rf"(?<!\w)(?:{_NOUNS} )?'([a-z]\w*)'", flag, message)
    return re.sub(r"\bunknown (\w+(?: set)?) '", unknown, message)
