"""Models with one defect each, which a check has to find."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel


class Past(nn.Module):
    """Uses a linear module's weight without calling the module, as a fused kernel does."""

    def __init__(self, inner: nn.Linear) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.inner.weight.T


class Twice(Past):
    """Calls the linear module, and uses its weight once more past it: the hooks see half of the gradient."""

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) + super().forward(x)


class Neighbours(nn.Module):
    """What comes out depends on the other rows of the batch."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.inner(x)
        return out - 0.5 * out.mean(dim=(0, 1), keepdim=True)


def with_up_projection(model: PreTrainedModel, defect: type[nn.Module]) -> PreTrainedModel:
    """The Llama with its up projection of layer 1 inside the defect."""
    mlp = model.model.layers[1].mlp
    mlp.up_proj = defect(mlp.up_proj)
    return model


def without_mask(model: PreTrainedModel) -> PreTrainedModel:
    """The model, for which every position is a token. (A mask that is not given at all is guessed from positions.)"""

    class Deaf(type(model)):
        def forward(self, attention_mask=None, position_ids=None, **more):
            ones = None if attention_mask is None else torch.ones_like(attention_mask)
            return super().forward(attention_mask=ones, position_ids=position_ids, **more)

    model.__class__ = Deaf
    return model


def without_positions(model: PreTrainedModel) -> PreTrainedModel:
    """The model, which counts positions from the beginning of the padded row."""

    class Deaf(type(model)):
        def forward(self, position_ids=None, **more):
            return super().forward(**more)

    model.__class__ = Deaf
    return model


def with_stray_parameter(model: PreTrainedModel) -> PreTrainedModel:
    """The Llama with a parameter that its own module does not use."""
    mlp = model.model.layers[0].mlp
    mlp.scale = nn.ParameterDict({"a": nn.Parameter(torch.full((24,), 1.5, dtype=model.dtype))})
    forward = mlp.forward
    mlp.forward = lambda x: forward(x) * mlp.scale["a"]
    return model
