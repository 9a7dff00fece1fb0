"""AdamW with a schedule and a bound on the gradient, and the moving average of the weights that is shipped."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from .pace import Pace

_MAX_GRADIENT = 1.0


class Optimiser:
    """One step for all parameters of some modules; matrices decay, vectors do not."""

    def __init__(self, modules: Mapping[str, nn.Module], learning_rate: float, weight_decay: float = 0.0) -> None:
        parameters = [parameter for module in modules.values() for parameter in module.parameters()]
        self._parameters = parameters
        self._learning_rate = learning_rate
        groups = [
            {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": weight_decay},
            {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
        ]
        on_cuda = parameters[0].is_cuda
        self._adam = torch.optim.AdamW(groups, lr=learning_rate, betas=(0.9, 0.98), eps=1e-8, fused=on_cuda)

    def step(self, loss: Tensor, pace: Pace, warmup_steps: int) -> Tensor:
        """Backward, clip, step; returns the norm of the gradient."""
        self._adam.zero_grad(set_to_none=True)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self._parameters, _MAX_GRADIENT)
        for group in self._adam.param_groups:
            group["lr"] = self._learning_rate * pace.rate(warmup_steps)
        self._adam.step()
        return norm

    def state_dict(self) -> dict:
        return self._adam.state_dict()

    def load_state_dict(self, state: dict) -> None:
        self._adam.load_state_dict(state)


class MovingAverage:
    """Exponential moving average of the parameters of some modules, shorter at the beginning."""

    def __init__(self, modules: Mapping[str, nn.Module], decay: float) -> None:
        self._decay = decay
        self._live = {
            f"{part}.{name}": parameter for part, module in modules.items() for name, parameter in module.named_parameters()
        }
        self._averages = {name: parameter.detach().clone() for name, parameter in self._live.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        decay = min(self._decay, (1 + step) / (10 + step))
        live = [parameter.detach() for parameter in self._live.values()]
        torch._foreach_lerp_(list(self._averages.values()), live, 1 - decay)

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
