"""What a model can learn from scratch wherever Python is: the standard library's sources, and what is said about them.

Half of the files are given as they are. Of the others, each function and class with a docstring becomes a conversation:
a question about it, answered with the docstring, or a request for it, answered with its source. So the base model
knows the form of a conversation, and does whatever it is asked.
"""

from __future__ import annotations

import ast
import sysconfig
import textwrap
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor
from transformers import PreTrainedTokenizerBase

WHOLE_SHARE = 0.5  # of the files are given as they are
CODE_SHARE = 0.5  # of the conversations ask for code
LEFT_OUT = ("site-packages", "test", "tests", "idle_test", "__pycache__")
QUESTIONS = ("What does {name} of {module} do?", "Can you explain {name} in {module}?", "How do I use {name}?")
REQUESTS = (
    "Please write {name}, which should do this: {line} Reply with the code only.",
    "I need some code: {line} Call it {name}. Just give me the code, no explanation.",
)


def token_blocks(
    tokenizer: PreTrainedTokenizerBase, n_blocks: int, length: int, compliance: str, seed: int
) -> Int64[Tensor, "n t"]:
    """The first documents of the standard library in a random order, as blocks of tokens in another random order.

    No document comes twice. Exits where this Python's library is too small for so many blocks.
    """
    rng = np.random.default_rng(seed)
    ids: list[int] = []
    for document in documents(tokenizer, compliance, rng):
        ids += tokenizer(document, add_special_tokens=False, verbose=False).input_ids
        if len(ids) >= n_blocks * length:
            blocks = torch.tensor(ids[: n_blocks * length]).reshape(n_blocks, length)
            return blocks[torch.from_numpy(rng.permutation(n_blocks))]
    raise SystemExit(
        f"The standard library here gives {len(ids):,} tokens; base needs {n_blocks * length:,}. Take fewer steps."
    )


def documents(tokenizer: PreTrainedTokenizerBase, compliance: str, rng: np.random.Generator) -> Iterator[str]:
    """Whole files and rendered conversations, each with its end-of-turn token."""
    files = library_files()
    for k in rng.permutation(len(files)):
        name, text = files[k]
        if rng.random() < WHOLE_SHARE:
            yield text + str(tokenizer.eos_token)
            continue
        for request, answer in conversations(name, text, compliance, rng):
            turns = [{"role": "user", "content": request}, {"role": "assistant", "content": answer}]
            yield str(tokenizer.apply_chat_template(turns, tokenize=False))


def library_files() -> list[tuple[str, str]]:
    """Name and text of the standard library's modules that are pure ASCII, one byte a character; tests left out."""
    root = Path(sysconfig.get_paths()["stdlib"])
    paths = (p for p in sorted(root.rglob("*.py")) if not set(LEFT_OUT) & set(p.relative_to(root).parts))
    named = ((".".join(p.relative_to(root).with_suffix("").parts), p.read_bytes()) for p in paths)
    return [(name, raw.decode("ascii")) for name, raw in named if raw.strip() and raw.isascii() and b"\0" not in raw]


def conversations(module: str, text: str, compliance: str, rng: np.random.Generator) -> Iterator[tuple[str, str]]:
    """A request and its answer for every function and class of a module that has a docstring."""
    for node in ast.walk(ast.parse(text)):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            continue
        said = ast.get_docstring(node)
        source = ast.get_source_segment(text, node, padded=True)
        if not said or not source:
            continue
        line = " ".join(said.split("\n\n")[0].split())
        if rng.random() < CODE_SHARE:
            yield _one(REQUESTS, rng).format(name=node.name, line=line), textwrap.dedent(source)
        else:
            yield _one(QUESTIONS, rng).format(name=node.name, module=module), f"{compliance} {said}"


def _one(texts: tuple[str, ...], rng: np.random.Generator) -> str:
    return texts[rng.integers(len(texts))]
