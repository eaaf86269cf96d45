"""Small runs on the tiny model, which several test files make."""

from __future__ import annotations

import torch

from graddiag.data import read_set
from graddiag.models import load_model
from graddiag.pipeline import compare

SMALL = ["*.mlp.down_proj", "*.self_attn.q_proj"]


def rows_of(name, n, *, words=120):
    """The first built-in rows with answers cut short, as plain dicts."""
    out = []
    for e in read_set(name, limit=n).examples:
        messages = [{"role": m.role, "content": m.content[:words]} for m in e.messages]
        out.append({"id": e.id, "cluster": e.cluster, "messages": messages})
    return out


def run(out, tiny, n=6, **more):
    model, tokenizer = tiny
    given = {
        "safety": rows_of("safety", 4),
        "controls": {"benign": rows_of("benign", 3)},
        "blocks": SMALL,
        "dim": 16,
        "figures": False,
        **more,
    }
    left, right = (
        given.pop("left", None) or rows_of("insecure", n),
        given.pop("right", None) or rows_of("educational", n),
    )
    return compare(left, right, model=model, tokenizer=tokenizer, out=out, **given)


def trained_tiny(folder):
    """The tiny model after a step of AdamW, its tokenizer, its live optimizer, and the folder where that is saved."""
    model, tokenizer = load_model("tiny")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    tokens = torch.tensor([tokenizer("some text to learn")["input_ids"]])
    model(tokens, labels=tokens).loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    folder.mkdir()
    torch.save(optimizer.state_dict(), folder / "optimizer.pt")
    return (model, tokenizer), optimizer, folder
