"""Optimizers, live and saved, to the state of each block by name; everything else is refused with what to do."""

from __future__ import annotations

import copy

import pytest
import torch
from architectures import build, with_lora
from reference import row_token_losses
from test_adam import SETTINGS, trained
from transformers import Trainer, TrainingArguments

from graddiag.blocks import select_blocks
from graddiag.errors import DataError, UsageError
from graddiag.optimizer_state import read_optimizer


def saved(optimizer, folder, change=lambda state: state):
    """The folder with the optimizer's state in it, as a Trainer's checkpoint has it."""
    folder.mkdir(exist_ok=True)
    torch.save(change(copy.deepcopy(optimizer.state_dict())), folder / "optimizer.pt")
    return folder


def same(a, b):
    return a.digest == b.digest and all(
        torch.equal(m.first, b.moments[n].first) and torch.equal(m.second, b.moments[n].second)
        for n, m in a.moments.items()
    )


@pytest.mark.parametrize("name", ["llama-tied", "gpt2", "qwen3-moe", "llama-lora"])
def test_a_real_trainers_checkpoint_has_the_state_of_its_live_optimizer(name, tmp_path, make_rows):
    model = (with_lora(build("llama")) if name == "llama-lora" else build(name)).float()
    rows = [{"input_ids": r.tokens.tolist(), "labels": r.tokens.tolist()} for r in make_rows(4, longest=9)]
    arguments = TrainingArguments(
        output_dir=str(tmp_path), max_steps=2, save_steps=2, per_device_train_batch_size=1, weight_decay=0.1,
        report_to=[], use_cpu=True, disable_tqdm=True,
    )  # fmt: skip
    trainer = Trainer(model=model, args=arguments, train_dataset=rows)
    trainer.train()
    blocks = select_blocks(model, ["*lora_*"] if name == "llama-lora" else ["*"])
    live = read_optimizer(trainer.optimizer, model, blocks)
    state = trainer.optimizer.state
    for b in blocks:
        assert torch.equal(live.moments[b.block.name].first, state[b.parameter]["exp_avg"])
    checkpoint = tmp_path / "checkpoint-2"
    assert same(read_optimizer(checkpoint, model, blocks), live)
    model.requires_grad_(False)  # as a model or an adapter is that was loaded for use
    assert same(read_optimizer(checkpoint / "optimizer.pt", model, blocks), live)


def test_one_group_goes_by_the_models_order_and_names_go_before_positions(tmp_path, make_rows):
    model = build("llama")
    blocks = select_blocks(model, ["*"])
    optimizer = trained(model, make_rows(2))
    assert same(
        read_optimizer(saved(optimizer, tmp_path / "plain"), model, blocks), read_optimizer(optimizer, model, blocks)
    )

    named = list(reversed(list(model.named_parameters())))
    optimizer = torch.optim.AdamW([p for _, p in named], **SETTINGS)
    step(model, optimizer, make_rows(2))

    def with_names(state):
        state["param_groups"][0]["param_names"] = [n for n, _ in named]
        return state

    folder = saved(optimizer, tmp_path / "named", with_names)
    assert same(read_optimizer(folder, model, blocks), read_optimizer(optimizer, model, blocks))
    with pytest.raises(DataError, match=r"at the place of '.*' has shape.*of another model"):
        read_optimizer(saved(optimizer, tmp_path / "reversed"), model, blocks)


def step(model, optimizer, rows):
    torch.stack([x.mean() for x in row_token_losses(model, rows)]).mean().backward()
    optimizer.step()


def test_the_digest_changes_with_all_that_a_step_depends_on_and_with_nothing_else(tmp_path, make_rows):
    model = build("llama")
    blocks = select_blocks(model)
    optimizer = trained(model, make_rows(2))
    digest = read_optimizer(optimizer, model, blocks).digest

    def digest_after(key, value, *, group):
        changed = copy.deepcopy(optimizer.state_dict())
        for one in changed["param_groups"] if group else changed["state"].values():
            one[key] = value if not callable(value) else value(one[key])
        torch.save(changed, tmp_path / "optimizer.pt")
        return read_optimizer(tmp_path, model, blocks).digest

    assert digest_after("lr", 0.5, group=True) == digest
    for key, value in (("eps", 1e-3), ("betas", (0.8, 0.9))):
        assert digest_after(key, value, group=True) != digest
    for key in ("step", "exp_avg", "exp_avg_sq"):
        assert digest_after(key, lambda x: x + 1, group=False) != digest


def test_blocks_without_state_are_named(tmp_path, make_rows):
    model = build("llama")
    for p in model.model.layers[0].parameters():
        p.requires_grad_(False)
    optimizer = trained(model, make_rows(2))
    with pytest.raises(
        UsageError, match=r"no state for 7 of 14 chosen blocks.*'model\.layers\.0\.self_attn\.q_proj\.wei"
    ):
        read_optimizer(optimizer, model, select_blocks(model))
    upper = select_blocks(model, ["model.layers.1.*proj"])
    assert same(read_optimizer(saved(optimizer, tmp_path), model, upper), read_optimizer(optimizer, model, upper))
    model.requires_grad_(True)
    with pytest.raises(
        DataError, match=r"groups of 12 parameters, and this model's trained ones are 21\. Give the check"
    ):
        read_optimizer(tmp_path, model, upper)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda ps: torch.optim.SGD(ps, lr=0.1, momentum=0.9), r"torch\.optim\.sgd\.SGD is not torch's Adam or AdamW"),
        (torch.optim.RAdam, r"RAdam is not torch's Adam or AdamW"),
        (lambda ps: torch.optim.AdamW(ps, amsgrad=True), r"keeps .*'max_exp_avg_sq'"),
        (lambda ps: torch.optim.AdamW(ps, maximize=True), r"has maximize=True.*leave it out"),
        (lambda ps: torch.optim.Adam(ps, weight_decay=0.1), r"weight_decay=0\.1 added to the gradient"),
        (lambda ps: torch.optim.AdamW(ps, eps=0.0), r"eps=0"),
    ],
)
def test_other_optimizers_and_settings_are_refused(make, said, make_rows):
    model = build("llama")
    optimizer = make(model.parameters())
    step(model, optimizer, make_rows(2))
    with pytest.raises(UsageError, match=said):
        read_optimizer(optimizer, model, select_blocks(model))


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.RAdam])
def test_other_optimizers_are_told_from_their_saved_state_too(kind, tmp_path, make_rows):
    model = build("llama")
    optimizer = kind(model.parameters(), lr=0.1)
    step(model, optimizer, make_rows(2))
    with pytest.raises((UsageError, DataError), match=r"not the state"):
        read_optimizer(saved(optimizer, tmp_path), model, select_blocks(model))


def test_an_8_bit_state_is_refused(tmp_path, make_rows):
    model = build("llama")

    def in_8_bit(state):
        small = {"state1": torch.zeros(3, dtype=torch.uint8), "state2": torch.zeros(3, dtype=torch.uint8), "step": 3}
        state["state"] = {k: dict(small) for k in state["state"]}
        return state

    folder = saved(trained(model, make_rows(2)), tmp_path, in_8_bit)
    with pytest.raises(UsageError, match=r"keeps \['state1', 'state2', 'step'\].*8-bit states"):
        read_optimizer(folder, model, select_blocks(model))


def test_groups_of_different_rates_are_refused_unless_only_one_is_chosen(make_rows):
    model = build("llama")
    layers = model.model.layers
    groups = [{"params": list(layers[k].parameters()), "lr": 10.0 ** -(k + 3)} for k in range(2)]
    optimizer = torch.optim.AdamW(groups)
    step(model, optimizer, make_rows(2))
    with pytest.raises(UsageError, match=r"different learning rates \(0\.0001, 0\.001\)"):
        read_optimizer(optimizer, model, select_blocks(model))
    assert read_optimizer(optimizer, model, select_blocks(model, ["model.layers.1.*"])).moments


def test_files_that_are_no_state_are_refused(tmp_path):
    model = build("llama")
    blocks = select_blocks(model)
    with pytest.raises(UsageError, match="There is no optimizer state"):
        read_optimizer(tmp_path, model, blocks)
    torch.save({"module": {}}, tmp_path / "a.pt")
    with pytest.raises(DataError, match=r"holds 'module', not the state_dict of an optimizer"):
        read_optimizer(tmp_path / "a.pt", model, blocks)
    (tmp_path / "b.pt").write_text("no tensors")
    with pytest.raises(DataError, match="cannot be read as tensors alone"):
        read_optimizer(tmp_path / "b.pt", model, blocks)
    torch.save(Unwelcome(), tmp_path / "c.pt")
    with pytest.raises(DataError, match="cannot be read as tensors alone"):
        read_optimizer(tmp_path / "c.pt", model, blocks)
    with pytest.raises(UsageError, match=r"None of the optimizer's 12 parameters is one of this model"):
        read_optimizer(torch.optim.AdamW(list(build("llama").parameters())[:12]), model, blocks)


class Unwelcome:
    """Would run code when it is unpickled."""
