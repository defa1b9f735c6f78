"""The FISMO optimizer: a thin `torch.optim.Optimizer` around `update.py` (matrices) and torch's AdamW (the rest)."""

from collections.abc import Callable, Iterable
from typing import Any, cast

import torch
from torch import Tensor
from torch.optim.adamw import adamw
from torch.optim.optimizer import Optimizer

from fismo_core import update
from fismo_core.layout import Bucket, MatrixLayout, make_buckets
from fismo_core.matrix_functions import full_precision_matmul
from fismo_core.options import MATRIX_KEYS, PAPER_FORM, check_options, options_of
from fismo_core.routing import Plan, layout_from_plain, layout_to_plain, plan_of_groups

__all__ = ["FISMO"]

MAX_FAILED_REFRESHES = 10
"""Consecutive refreshes in which a matrix's roots may fail, and the previous ones be used, before `step` raises."""


class FISMO(Optimizer):
    """Fisher-structured momentum-orthogonalized optimizer: Muon in the metric of a Kronecker-factored Fisher matrix.

    For each hidden matrix W (m x n) with gradient G it keeps momentum M and Fisher factors P (m x m), Q (n x n), and
    steps along D = P^-p Polar(P^-p M Q^-p) Q^-p, the exact minimiser of <M, D> over the trust region
    ||P^p D Q^p||_2 <= 1. p = 1/2 is the paper's metric, p = 0 is Muon. All other parameters are treated by AdamW.

    Source: Xu, Yan, Zhang, "FISMO: Fisher-Structured Momentum-Orthogonalized Optimizer" (2026), arXiv 2601.21750. The
    defaults are not the paper's: see docs/algorithm.md for what was changed and measured; `FISMO.paper` is the
    published form.

    Example:
        >>> optimizer = FISMO(split_parameters(model), lr=0.02)
        >>> print(optimizer.plan())
        >>> loss.backward()
        >>> optimizer.step()

    Args:
        params: the groups that `split_parameters(model)` returns. Also parameters of two or more dimensions, or
            groups of them: they are treated as matrices (convolutions flattened), since without the model nothing
            else is known of them. A group with `rule="adamw"` is treated by AdamW.
        lr: the trust radius: length of a step. Per group, and scheduled, like any learning rate.
        momentum: decay beta of the momentum, M <- beta M + (1 - beta) G.
        nesterov: step along beta M + (1 - beta) G instead of M.
        momentum_space: `raw` averages gradients and whitens the average; `whitened` averages whitened gradients.
        power: p, the power of the inverse factors on each side, in [0, 1/2].
        damping: mu. With `relative` scale, in units of the factors' mean eigenvalue.
        damping_scale: `relative` makes the statistics scale-free, corrects their average for its start, and damps the
            factors: (P + mu I) / (1 + mu). `absolute` damps each statistic by mu tr(P) / m I, as the paper does;
            it depends on the gradient's scale.
        fisher_decay: decay gamma of the factors' averages.
        refresh_interval: steps between new roots of the factors. Statistics are taken in every step.
        polar: how the polar factor is found: `quintic` (Muon's Newton-Schulz), `polar-express`, or `exact` (SVD, slow).
        polar_steps: iterations of the polar factor. Three suffice on whitened matrices; Muon needs five.
        shape_scale: what multiplies a step of an m x n matrix: `spectral` sqrt(max(1, m/n)), `rms` 0.2 sqrt(max(m, n))
            (AdamW's learning rates carry over), `none` 1.
        grafting: scale D to the Frobenius norm of the polar factor, so that one lr means the same at any curvature.
        weight_decay: decoupled weight decay, W <- (1 - lr weight_decay) W, for matrices.
        cautious_weight_decay: decay only entries that the step moves towards zero.
        max_factor_dim: a side longer than this keeps a diagonal factor, which bounds memory and time.
        compute_dtype: dtype of whitening products and polar factor: `auto` (bfloat16 on hardware that multiplies it
            fast, else float32), `float32`, `bfloat16` or `float16`. Float64 parameters are computed in float64.
            Momentum, factors and roots are float32 always.
        adamw_lr: learning rate of AdamW, for groups with `rule="adamw"`, as are the following.
        adamw_betas: decays of AdamW's moments.
        adamw_eps: AdamW's epsilon.
        adamw_weight_decay: AdamW's decoupled weight decay.

    Raises:
        ValueError: an argument out of range, or a parameter that cannot be a matrix.
        TypeError: a complex or integer parameter.

    A parameter without a gradient is left alone, its state included. A matrix with a non-finite gradient is not
    stepped and its state stays clean; `skipped_gradients` counts these. `p.grad` is never changed.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 0.02,
        *,
        momentum: float = 0.95,
        nesterov: bool = True,
        momentum_space: str = "raw",
        power: float = 0.25,
        damping: float = 0.1,
        damping_scale: str = "relative",
        fisher_decay: float = 0.95,
        refresh_interval: int = 5,
        polar: str = "quintic",
        polar_steps: int = 3,
        shape_scale: str = "spectral",
        grafting: bool = True,
        weight_decay: float = 0.0,
        cautious_weight_decay: bool = False,
        max_factor_dim: int = 8192,
        compute_dtype: str = "auto",
        adamw_lr: float = 3e-3,
        adamw_betas: tuple[float, float] = (0.9, 0.95),
        adamw_eps: float = 1e-8,
        adamw_weight_decay: float = 0.0,
    ) -> None:
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "nesterov": nesterov,
            "momentum_space": momentum_space,
            "power": power,
            "damping": damping,
            "damping_scale": damping_scale,
            "fisher_decay": fisher_decay,
            "refresh_interval": refresh_interval,
            "polar": polar,
            "polar_steps": polar_steps,
            "shape_scale": shape_scale,
            "grafting": grafting,
            "weight_decay": weight_decay,
            "cautious_weight_decay": cautious_weight_decay,
            "max_factor_dim": max_factor_dim,
            "compute_dtype": compute_dtype,
        }
        self._adamw_defaults = {
            "lr": adamw_lr,
            "betas": adamw_betas,
            "eps": adamw_eps,
            "weight_decay": adamw_weight_decay,
        }
        self._buckets: dict[int, list[Bucket]] = {}  # by index of the group
        self._states: dict[int, list[update.State]] = {}  # stacked, one a bucket
        self._layouts: dict[int, list[MatrixLayout]] = {}
        super().__init__(params, defaults)

    @classmethod
    def paper(cls, params: Iterable[Any], lr: float = 0.02, **options: Any) -> "FISMO":
        """The published algorithm to the letter: `PAPER_FORM`, with damping 1e-3 and five polar steps unless given.

        Args:
            params: as in `FISMO`.
            lr: the trust radius eta; with an exact polar factor and no decay, every step has exactly this length in
                the metric.
            options: further arguments of `FISMO`.

        Raises:
            ValueError: if an option contradicts the form.
        """
        wrong = [f"{key}={options[key]!r}" for key, value in PAPER_FORM.items() if options.get(key, value) != value]
        if wrong:
            fixed = ", ".join(f"{key}={value!r}" for key, value in PAPER_FORM.items())
            raise ValueError(f"{', '.join(wrong)} contradicts the paper's form, which is {fixed}")
        return cls(params, lr, **{"damping": 1e-3, "polar_steps": 5, **options, **PAPER_FORM})

    # -- groups and state --------------------------------------------------------------------------------------------

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group: one of `split_parameters`, or any group of parameters of two or more dimensions."""
        rule = param_group.setdefault("rule", "matrix")
        if rule not in ("matrix", "adamw"):
            raise ValueError(f"unknown rule {rule!r} of a parameter group; choose matrix or adamw")
        if rule == "adamw":
            for key, value in self._adamw_defaults.items():
                param_group.setdefault(key, value)
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        try:
            self._check_parameters(group)
            if rule == "adamw":
                for key in MATRIX_KEYS:
                    group.pop(key, None)
            check_options(group)
            self._allocate(len(self.param_groups) - 1)
        except Exception:
            self.param_groups.pop()
            raise

    def _check_parameters(self, group: dict[str, Any]) -> None:
        names = group.get("param_names") or [f"parameter {index}" for index in range(len(group["params"]))]
        for name, parameter in zip(names, group["params"], strict=True):
            if not parameter.is_floating_point():
                raise TypeError(f"{name} is {parameter.dtype}; FISMO needs real floating-point parameters")
            if group["rule"] == "matrix" and parameter.ndim < 2:
                raise ValueError(
                    f"{name} has shape {tuple(parameter.shape)} and is no matrix. Pass split_parameters(model), which "
                    "gives such parameters to AdamW, or put it into a group with rule='adamw'."
                )

    def _allocate(self, index: int) -> None:
        """Allocate all state of a group at once, so that checkpoints are complete from the start."""
        group = self.param_groups[index]
        parameters = group["params"]
        if group["rule"] == "adamw":
            for parameter in parameters:
                self.state[parameter] = {
                    "step": torch.zeros(()),  # on the CPU, as in torch: read without a device sync
                    "exp_avg": torch.zeros_like(parameter, memory_format=torch.preserve_format),
                    "exp_avg_sq": torch.zeros_like(parameter, memory_format=torch.preserve_format),
                }
            return
        group.setdefault("layouts", [layout_to_plain(MatrixLayout()) for _ in parameters])
        group.setdefault("step", 0)
        self._layouts[index] = [layout_from_plain(plain) for plain in group["layouts"]]
        buckets = make_buckets(parameters, self._layouts[index])
        self._buckets[index] = buckets
        self._states[index] = [
            update.initial_state(len(b.slots), b.m, b.n, options_of(group, b), b.dtype, b.device) for b in buckets
        ]

    def state_bytes(self) -> int:
        """Bytes of optimizer state, both rules together."""
        stacked = [tensor for states in self._states.values() for state in states for tensor in state.values()]
        plain = [tensor for state in self.state.values() for tensor in state.values()]
        return sum(tensor.numel() * tensor.element_size() for tensor in stacked + plain)

    def skipped_gradients(self) -> int:
        """How many matrix gradients so far were non-finite and skipped. Synchronises with the device."""
        return sum(int(state["skipped"].sum()) for states in self._states.values() for state in states)

    def plan(self) -> Plan:
        """Which parameter is treated by whom, and why; print it for a table."""
        return plan_of_groups(self.param_groups)

    # -- the step ----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One optimization step.

        Args:
            closure: re-evaluates the model and returns the loss, as for any torch optimizer.

        Returns:
            The closure's loss, or None.

        Raises:
            RuntimeError: a sparse gradient, or roots of a Fisher factor that failed in ten refreshes on end.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for index, group in enumerate(self.param_groups):
            for parameter in group["params"]:
                if parameter.grad is not None and parameter.grad.is_sparse:
                    raise RuntimeError("FISMO does not support sparse gradients; use nn.Embedding(sparse=False)")
            if group["rule"] == "adamw":
                self._step_adamw(group)
            else:
                self._step_matrices(index, group)
        return loss

    def _step_matrices(self, index: int, group: dict[str, Any]) -> None:
        refresh = group["step"] % group["refresh_interval"] == 0
        group["step"] += 1
        parameters = group["params"]
        layouts = self._layouts[index]
        gradients = {
            i: layouts[i].split(parameter.grad) for i, parameter in enumerate(parameters) if parameter.grad is not None
        }
        steps: dict[int, dict[int, Tensor]] = {i: {} for i in gradients}
        for number, bucket in enumerate(self._buckets[index]):
            present = [slot.parameter in gradients for slot in bucket.slots]
            if not any(present):
                continue
            zeros = torch.zeros(bucket.m, bucket.n, dtype=bucket.dtype, device=bucket.device)
            G = torch.stack(
                [
                    gradients[slot.parameter][slot.part].to(bucket.dtype) if here else zeros
                    for slot, here in zip(bucket.slots, present, strict=True)
                ]
            )
            active = None if all(present) else torch.tensor(present, device=bucket.device)
            # Autocast, if step() is called inside it, would turn the products below into half precision.
            with torch.autocast(bucket.device.type, enabled=False), full_precision_matmul():
                D, state = update.fismo_update(
                    G, self._states[index][number], options_of(group, bucket), active=active, refresh=refresh
                )
            self._states[index][number] = state
            if refresh and "failures" in state and int(state["failures"].max()) >= MAX_FAILED_REFRESHES:
                raise RuntimeError(
                    f"roots of the Fisher factors of {bucket.m} x {bucket.n} matrices failed in "
                    f"{MAX_FAILED_REFRESHES} refreshes on end; raise damping or lower lr"
                )
            for slot, here, matrix in zip(bucket.slots, present, D.unbind(), strict=True):
                if here:
                    steps[slot.parameter][slot.part] = matrix
        lr, decay = float(group["lr"]), float(group["lr"]) * group["weight_decay"]
        moved = [parameters[i] for i in steps]
        deltas = [layouts[i].join([parts[k] for k in sorted(parts)], parameters[i].shape) for i, parts in steps.items()]
        if not moved:
            return
        if decay and group["cautious_weight_decay"]:
            for parameter, delta in zip(moved, deltas, strict=True):
                parameter.mul_(torch.where(parameter * delta > 0, 1 - decay, 1))
        elif decay:
            torch._foreach_mul_(moved, 1 - decay)
        torch._foreach_add_(moved, deltas, alpha=-lr)

    def _step_adamw(self, group: dict[str, Any]) -> None:
        parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
        states = [self.state[parameter] for parameter in parameters]
        adamw(
            parameters,
            [cast(Tensor, parameter.grad) for parameter in parameters],
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [],
            [state["step"] for state in states],
            amsgrad=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )

    # -- checkpoints -------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """State by parameter, as torch's optimizers give it, independent of how matrices were stacked.

        A matrix parameter's entries are named `momentum.0`, `P.0`, ...: the number is the matrix within the parameter.
        """
        result = super().state_dict()
        state = dict(result["state"])
        first = 0
        for index, group in enumerate(self.param_groups):
            for bucket, stacked in zip(self._buckets.get(index, []), self._states.get(index, []), strict=True):
                for row, slot in enumerate(bucket.slots):
                    entry = state.setdefault(first + slot.parameter, {})
                    entry.update({f"{key}.{slot.part}": tensor[row].clone() for key, tensor in stacked.items()})
            first += len(group["params"])
        return {**result, "state": dict(sorted(state.items()))}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what `state_dict` gave, bit for bit: state keeps its own dtype whatever the parameter's is.

        Raises:
            ValueError: if groups, parameters, or shapes do not fit, or entries are missing. Nothing is changed then.
        """
        entries = self._entries_to_load(state_dict)
        # torch would cast floating-point state to the parameter's dtype (pytorch issue 43706), which loses the float32
        # state of bfloat16 models: so torch loads the groups, and the tensors are copied here.
        super().load_state_dict({**state_dict, "state": {}})
        for parameter, entry in entries["adamw"]:
            self.state[parameter] = entry
        for index, states in entries["matrix"].items():
            self._states[index] = states

    def _entries_to_load(self, state_dict: dict[str, Any]) -> dict[str, Any]:
        saved_groups, saved = state_dict["param_groups"], state_dict["state"]
        if [len(g["params"]) for g in saved_groups] != [len(g["params"]) for g in self.param_groups]:
            raise ValueError("the state has other parameter groups than the optimizer")
        adamw_entries: list[tuple[Tensor, dict[str, Tensor]]] = []
        matrix_states: dict[int, list[update.State]] = {}
        for index, (group, saved_group) in enumerate(zip(self.param_groups, saved_groups, strict=True)):
            if saved_group.get("rule") != group["rule"] or saved_group.get("layouts") != group.get("layouts"):
                raise ValueError(
                    f"parameter group {index} of the state was treated by other rules than the optimizer's"
                )
            keys = saved_group["params"]
            if group["rule"] == "adamw":
                for key, parameter in zip(keys, group["params"], strict=True):
                    current = self.state[parameter]
                    adamw_entries.append(
                        (parameter, {name: _fetch(saved, key, name, value) for name, value in current.items()})
                    )
                continue
            matrix_states[index] = []
            for bucket in self._buckets[index]:
                template = update.initial_state(
                    len(bucket.slots), bucket.m, bucket.n, options_of(saved_group, bucket), bucket.dtype, bucket.device
                )
                matrix_states[index].append(
                    {
                        name: torch.stack(
                            [
                                _fetch(saved, keys[slot.parameter], f"{name}.{slot.part}", stacked[0])
                                for slot in bucket.slots
                            ]
                        )
                        for name, stacked in template.items()
                    }
                )
        return {"adamw": adamw_entries, "matrix": matrix_states}

    def __getstate__(self) -> dict[str, Any]:
        return {
            **super().__getstate__(),
            "_adamw_defaults": self._adamw_defaults,
            "_buckets": self._buckets,
            "_layouts": self._layouts,
            "_states": self._states,
        }


def _fetch(saved: dict[Any, Any], key: Any, name: str, like: Tensor) -> Tensor:
    value = saved.get(key, {}).get(name)
    if value is None:
        raise ValueError(f"the state of parameter {key} has no {name}")
    if value.shape != like.shape:
        raise ValueError(f"{name} of parameter {key} has shape {tuple(value.shape)}, expected {tuple(like.shape)}")
    return cast(Tensor, value.to(device=like.device, dtype=like.dtype, copy=True))
