"""The optimiser, and the moving average of the weights that is shipped.

Weights that mix features (matrices and convolutions inside the networks) follow Muon: the momentum of the gradient,
made orthogonal by a Newton-Schulz iteration, which moves all directions of a matrix by the same amount
(K. Jordan, 2024; step sizes as in arXiv:2502.16982, equal to AdamW's in root mean square). Matrices of one shape are
one batch of products. Embeddings, first and last layers, norms and biases follow AdamW.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from .pace import Pace

_MAX_GRADIENT = 1.0
_MOMENTUM = 0.95
_ITERATIONS = 5
_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_UPDATE_RMS = 0.2
_BETAS = (0.9, 0.98)
# The layers that AdamW moves are few and on the way of everything: they go half as fast.
_ADAM_SHARE = 0.5
# First and last layers of the networks, and what is looked up or added in them, by official names.
_OUTER_PARTS = frozenset(
    {
        "token_embedding", "pos_embedding", "patch_embedding", "text_embedding", "time_embedding", "time_projection",
        "modulation", "head", "conv1", "conv2",
    }
)  # fmt: skip


class Muon:
    """Momentum and orthogonal steps for parameters of two or more axes, the first being that of the outputs."""

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        groups: dict[tuple[int, int], list[nn.Parameter]] = defaultdict(list)
        for parameter in parameters:
            groups[parameter.shape[0], parameter[0].numel()].append(parameter)
        self._groups = dict(groups)
        self._momenta = {
            shape: torch.zeros(len(group), *shape, device=group[0].device) for shape, group in self._groups.items()
        }

    @torch.no_grad()
    def step(self, learning_rate: Tensor, weight_decay: float) -> None:
        for shape, group in self._groups.items():
            gradient = torch.stack([parameter.grad.flatten(1) for parameter in group])
            momentum = self._momenta[shape]
            momentum.lerp_(gradient, 1 - _MOMENTUM)
            update = orthogonalised(gradient.lerp(momentum, _MOMENTUM))
            update = update * (learning_rate * -(_UPDATE_RMS * max(shape) ** 0.5))
            torch._foreach_mul_(group, 1 - learning_rate * weight_decay)
            torch._foreach_add_(group, [step.view_as(each) for step, each in zip(update, group, strict=True)])

    def state_dict(self) -> list[Tensor]:
        return list(self._momenta.values())

    def load_state_dict(self, state: list[Tensor]) -> None:
        for momentum, saved in zip(self._momenta.values(), state, strict=True):
            momentum.copy_(saved)


def orthogonalised(matrices: Tensor) -> Tensor:
    """The nearest orthogonal matrices, about: (N, rows, columns), singular values brought to between 0.7 and 1.2."""
    a, b, c = _COEFFICIENTS
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = (matrices.mT if tall else matrices).to(torch.bfloat16 if matrices.is_cuda else matrices.dtype)
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(_ITERATIONS):
        square = x @ x.mT
        x = a * x + (b * square + c * square @ square) @ x
    return (x.mT if tall else x).to(matrices.dtype)


class Optimiser:
    """One step for all parameters of some modules. Matrices decay, vectors do not.

    The learning rates are tensors that stay where they are, so that a recorded step follows them.
    """

    def __init__(self, modules: Mapping[str, nn.Module], learning_rate: float, weight_decay: float = 0.0) -> None:
        named = [item for module in modules.values() for item in module.named_parameters()]
        self._parameters = [parameter for _, parameter in named]
        self._learning_rate, self._weight_decay = learning_rate, weight_decay
        inner = {parameter for name, parameter in named if mixes_features(name, parameter)}
        self._muon = Muon([parameter for parameter in self._parameters if parameter in inner])
        others = [parameter for parameter in self._parameters if parameter not in inner]
        on_gpu, device = others[0].is_cuda, others[0].device
        self._rate, self._adam_rate = (torch.tensor(learning_rate, device=device) for _ in range(2))
        self._adam = torch.optim.AdamW(
            others, lr=self._adam_rate, betas=_BETAS, weight_decay=0.0, fused=on_gpu, capturable=on_gpu
        )

    def set_pace(self, pace: Pace, warmup_steps: int) -> None:
        """The rates of the coming step."""
        rate = self._learning_rate * pace.rate(warmup_steps)
        self._rate.fill_(rate)
        self._adam_rate.fill_(_ADAM_SHARE * rate)

    def step(self, loss: Tensor) -> Tensor:
        """Backward, clip, step; returns the norm of the gradient."""
        for parameter in self._parameters:
            parameter.grad = None
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self._parameters, _MAX_GRADIENT)
        self._adam.step()
        self._muon.step(self._rate, self._weight_decay)
        return norm

    def state_dict(self) -> dict:
        return {"adam": self._adam.state_dict(), "muon": self._muon.state_dict()}

    def load_state_dict(self, state: dict) -> None:
        self._adam.load_state_dict(state["adam"])
        for group in self._adam.param_groups:
            group["lr"] = self._adam_rate  # not the copy that was saved
        self._muon.load_state_dict(state["muon"])


def mixes_features(name: str, parameter: nn.Parameter) -> bool:
    """Whether a parameter is a matrix or a convolution from features to features, inside a network."""
    is_matrix = parameter.ndim >= 2 and min(parameter.shape[0], parameter[0].numel()) > 1
    return is_matrix and not _OUTER_PARTS.intersection(name.split("."))


class MovingAverage:
    """Exponential moving average of the parameters of some modules, shorter at the beginning."""

    def __init__(self, modules: Mapping[str, nn.Module], decay: float) -> None:
        self._decay = decay
        self._live = {
            f"{part}.{name}": parameter
            for part, module in modules.items()
            for name, parameter in module.named_parameters()
        }
        self._averages = {name: parameter.detach().clone() for name, parameter in self._live.items()}
        self._weight = torch.zeros((), device=next(iter(self._averages.values())).device)

    def set_step(self, step: int) -> None:
        """The weight that the coming update gives to the parameters."""
        self._weight.fill_(1 - min(self._decay, (1 + step) / (10 + step)))

    @torch.no_grad()
    def update(self) -> None:
        averages = list(self._averages.values())
        change = torch._foreach_sub([parameter.detach() for parameter in self._live.values()], averages)
        torch._foreach_mul_(change, self._weight)
        torch._foreach_add_(averages, change)

    def of(self, part: str) -> dict[str, Tensor]:
        """Averages of one module, by its own parameter names."""
        prefix = part + "."
        return {name[len(prefix) :]: value for name, value in self._averages.items() if name.startswith(prefix)}

    def state_dict(self) -> dict[str, Tensor]:
        return self._averages

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        for name, average in self._averages.items():
            average.copy_(state[name])
