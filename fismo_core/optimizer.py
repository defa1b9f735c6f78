"""The FISMO optimizer: a thin `torch.optim.Optimizer` around `update.py` (matrices) and torch's AdamW (the rest)."""

import copy
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterable
from typing import Any, cast

import torch
from torch import Tensor
from torch.optim.adamw import adamw
from torch.optim.optimizer import Optimizer

from fismo_core import update
from fismo_core.fisher import is_diagonal
from fismo_core.layout import Bucket, MatrixLayout, Slot, shares_memory
from fismo_core.options import DENSE_FORM, MATRIX_KEYS, PAPER_FORM, check_options, options_of, structure_of
from fismo_core.precision import full_precision_matmul
from fismo_core.routing import Plan, layout_from_plain, layout_to_plain, plan_of_groups
from fismo_core.sharding import (
    RowShards,
    Sharding,
    elementwise_cost,
    group_of,
    is_spread,
    matrix_cost,
    rows_of,
    whole_of,
)
from fismo_core.stacks import MatrixStacks, device_mask, fetch, placement_of

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
        statistics: `alternating` folds the gradient into P in one step and into Q in the next, `both` in every step.
        refresh_interval: steps between new roots of the factors; at the start also after 1, 2, 4, 8, ... steps.
        roots: `polynomial` computes roots by matrix products in `compute_dtype`, and needs relative damping and power
            1/8, 1/4 or 1/2; `eigh` computes them from eigenvalues in float32: exact, but slow.
        polar: how the polar factor is found: `composite` (a polynomial of degree five and one of nine), `quintic`
            (Muon's Newton-Schulz), `polar-express`, or `exact` (SVD, slow).
        polar_steps: how many polynomials: 2 for `composite`. Of Muon's quintics, three suffice on whitened matrices
            while Muon itself needs five.
        shape_scale: what multiplies a step of an m x n matrix: `spectral` sqrt(max(1, m/n)), `rms` 0.2 sqrt(max(m, n))
            (AdamW's learning rates carry over), `none` 1.
        grafting: scale D to the Frobenius norm of the polar factor, so that one lr means the same at any curvature.
        weight_decay: decoupled weight decay, W <- (1 - lr weight_decay) W, for matrices.
        cautious_weight_decay: decay only entries that the step moves towards zero.
        max_factor_dim: a side longer than this keeps a diagonal factor, which bounds memory and time.
        max_factor_ratio: so does a side longer than this times the other one; None: however long.
        compute_dtype: dtype of whitening products and polar factor: `auto` (bfloat16 on hardware that multiplies it
            fast, else float32), `float32` or `bfloat16`. Float64 parameters are computed in float64.
            Momentum and factors are float32 always.
        adamw_lr: learning rate of AdamW, for groups with `rule="adamw"`, as are the following.
        adamw_betas: decays of AdamW's moments.
        adamw_eps: AdamW's epsilon.
        adamw_weight_decay: AdamW's decoupled weight decay.
        process_group: ranks that share the work out, on which gradients are the same, as under DDP: each matrix, and
            each parameter of AdamW's, has an owner that alone keeps its state and computes its step, and sends the new
            values to the others. Steps, `skipped_gradients` and `full_state_dict` are then calls that all ranks make
            together. None: every process does all of the work; but parameters that FSDP2 (`fully_shard`) has spread
            over ranks bring their group along: gradients of a matrix go to its owner, and its step comes back.

    Raises:
        ValueError: an argument out of range, or a parameter that cannot be a matrix.
        TypeError: a complex or integer parameter.

    A parameter without a gradient is left alone, its state included. A matrix with a non-finite gradient is neither
    stepped nor decayed and its state stays clean; `skipped_gradients` counts these. (AdamW's parameters have no such
    guard, as in torch.) `p.grad` is never changed. An `lr` that is a tensor should live on the CPU. `radius_scale` of a
    group of matrices, 1 at first, may be changed at any time: it multiplies the trust radius, but not the weight decay.
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
        statistics: str = "alternating",
        refresh_interval: int = 10,
        roots: str = "polynomial",
        polar: str = "composite",
        polar_steps: int = 2,
        shape_scale: str = "spectral",
        grafting: bool = True,
        weight_decay: float = 0.0,
        cautious_weight_decay: bool = False,
        max_factor_dim: int = 8192,
        max_factor_ratio: float | None = 1.5,
        compute_dtype: str = "auto",
        adamw_lr: float = 3e-3,
        adamw_betas: tuple[float, float] = (0.9, 0.95),
        adamw_eps: float = 1e-8,
        adamw_weight_decay: float = 0.0,
        process_group: Any = None,
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
            "statistics": statistics,
            "refresh_interval": refresh_interval,
            "roots": roots,
            "polar": polar,
            "polar_steps": polar_steps,
            "shape_scale": shape_scale,
            "grafting": grafting,
            "weight_decay": weight_decay,
            "cautious_weight_decay": cautious_weight_decay,
            "max_factor_dim": max_factor_dim,
            "max_factor_ratio": max_factor_ratio,
            "compute_dtype": compute_dtype,
            "radius_scale": 1.0,
        }
        self._adamw_defaults = {
            "lr": adamw_lr,
            "betas": adamw_betas,
            "eps": adamw_eps,
            "weight_decay": adamw_weight_decay,
        }
        self._stacks: dict[int, MatrixStacks] = {}  # by index of the group
        self._rows: dict[int, RowShards] = {}  # by index of the group, where rows are spread over ranks
        self._sharding = None if process_group is None else Sharding(process_group)
        self._owners: dict[int, list[int]] = {}  # by index of the group: of each matrix, or parameter of AdamW's
        super().__init__(params, defaults)

    @classmethod
    def paper(cls, params: Iterable[Any], lr: float = 0.02, **options: Any) -> "FISMO":
        """The published algorithm to the letter: `PAPER_FORM`, with damping 1e-3 and five polar steps unless given.

        Args:
            params: as in `FISMO`.
            lr: the trust radius eta; with an exact polar factor and no decay, every step has exactly this length in
                the metric.
            options: further arguments of `FISMO`. A side longer than `max_factor_dim` keeps a diagonal factor here too.

        Raises:
            ValueError: if an option, or one of a group, contradicts the form.
        """
        defaults = {"damping": 1e-3, "polar": "quintic", "polar_steps": 5}
        params = list(params)
        return cls(params, lr, **_expand_form("paper", PAPER_FORM, params, {**defaults, **options}))

    @classmethod
    def dense(cls, params: Iterable[Any], lr: float = 0.02, **options: Any) -> "FISMO":
        """The default form without its economies, `DENSE_FORM`: the reference that it is held to.

        Both sides' factors are dense, statistics are taken and whitened in float32 in every step, and roots come from
        eigenvalues every five steps.

        Args:
            params: as in `FISMO`.
            lr: the trust radius.
            options: further arguments of `FISMO`.

        Raises:
            ValueError: if an option, or one of a group, contradicts the form.
        """
        params = list(params)
        return cls(params, lr, **_expand_form("dense", DENSE_FORM, params, options))

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
            self._find_ranks(group["params"])
            if rule == "adamw":
                for key in MATRIX_KEYS:
                    group.pop(key, None)
            check_options(group)
            self._allocate(len(self.param_groups) - 1)
        except Exception:
            self.param_groups.pop()
            raise

    def _find_ranks(self, parameters: list[Tensor]) -> None:
        """Take the ranks over which FSDP2 has spread parameters for those that share the work."""
        group = group_of(parameters)
        if group is None:
            return
        if not all(map(is_spread, parameters)):
            raise ValueError("a group has sharded parameters and whole ones: make groups of their own for them")
        if self._sharding is None:
            self._sharding = Sharding(group)
        elif self._sharding.group != group:
            raise ValueError("all parameters of an optimizer, and its process_group, must be on the same ranks")

    def _check_parameters(self, group: dict[str, Any]) -> None:
        for name, parameter in zip(_names(group), group["params"], strict=True):
            if parameter.dtype not in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
                raise TypeError(f"{name} is {parameter.dtype}; FISMO needs real parameters of 16, 32 or 64 bits")
            if group["rule"] == "matrix" and parameter.ndim < 2:
                raise ValueError(
                    f"{name} has shape {tuple(parameter.shape)} and is no matrix. Pass split_parameters(model), which "
                    "gives such parameters to AdamW, or put it into a group with rule='adamw'."
                )
        if len(group.get("layouts", group["params"])) != len(group["params"]):
            raise ValueError("a parameter group has one layout for each of its parameters")

    def _allocate(self, index: int) -> None:
        group = self.param_groups[index]
        if group["rule"] == "adamw":
            for parameter in self._owned_parameters(index):
                self.state[parameter] = {
                    # On the CPU: read without a device sync. In bfloat16, torch's default or not, it would stop at 256.
                    "step": torch.zeros((), dtype=torch.float32, device="cpu"),
                    "exp_avg": torch.zeros_like(parameter, memory_format=torch.preserve_format),
                    "exp_avg_sq": torch.zeros_like(parameter, memory_format=torch.preserve_format),
                }
            return
        group.setdefault("layouts", [layout_to_plain(MatrixLayout()) for _ in group["params"]])
        group.setdefault("steps", [0] * len(group["params"]))  # how many each one has taken
        self._stacks[index] = MatrixStacks.allocate(group, self._owned_matrices(index))
        self._mark_allocated()

    def _mark_allocated(self) -> None:
        """An empty entry for every matrix: whoever finds `state` empty (torch's `get_optimizer_state_dict`) takes it
        for an optimizer that allocates in its first step, and takes one."""
        for index in self._stacks:
            for parameter in self.param_groups[index]["params"]:
                self.state[parameter] = {}

    def _owned_parameters(self, index: int) -> list[Tensor]:
        """The parameters of a group of AdamW's that this rank steps."""
        parameters: list[Tensor] = self.param_groups[index]["params"]
        if self._sharding is None:
            return parameters
        if any(map(is_spread, parameters)):
            return parameters  # each rank steps its own rows
        if index not in self._owners:
            self._owners[index] = self._sharding.assign([elementwise_cost(p.numel()) for p in parameters])
        pairs = zip(parameters, self._owners[index], strict=True)
        return [parameter for parameter, owner in pairs if owner == self._sharding.rank]

    def _owned_matrices(self, index: int) -> set[Slot] | None:
        """The matrices of a group that this rank steps; None: all."""
        if self._sharding is None:
            return None
        group = self.param_groups[index]
        slots = _matrices(group)
        if any(map(is_spread, group["params"])):
            if index not in self._rows:
                costs = [0.0] * len(group["params"])
                for slot, cost in slots:
                    costs[slot.parameter] += cost
                by_parameter = self._sharding.assign(costs)
                shapes = [parameter.shape for parameter in group["params"]]
                self._rows[index] = RowShards(self._sharding, shapes, by_parameter)
                self._owners[index] = [by_parameter[slot.parameter] for slot, _ in slots]
        elif index not in self._owners:
            self._owners[index] = self._sharding.assign([cost for _, cost in slots])
        pairs = zip(slots, self._owners[index], strict=True)
        return {slot for (slot, _), owner in pairs if owner == self._sharding.rank}

    def _follow_moved_parameters(self, index: int, group: dict[str, Any]) -> None:
        """Allocate anew what was moved after construction but not stepped yet, as torch's lazy optimizers allow."""
        if group["rule"] == "adamw":
            moved = [
                name
                for name, parameter in zip(_names(group), group["params"], strict=True)
                if parameter in self.state  # and so owned
                and (
                    (average := self.state[parameter]["exp_avg"]).device != parameter.device
                    or average.dtype != parameter.dtype
                )
            ]
        else:
            before, now = self._stacks[index].placement, placement_of(group["params"])
            moved = [name for name, old, new in zip(_names(group), before, now, strict=True) if old != new]
        if not moved:
            return
        if any(group.get("steps", ())) or any(self.state[p].get("step") for p in group["params"] if p in self.state):
            raise RuntimeError(f"{moved[0]} was moved or converted after the first step; make a new optimizer for it")
        self._allocate(index)

    def state_bytes(self) -> int:
        """Bytes of optimizer state in this process, both rules together."""
        stacked = [t for stacks in self._stacks.values() for state in stacks.states for t in state.values()]
        plain = [tensor for state in self.state.values() for tensor in state.values()]
        return sum(rows_of(tensor).numel() * tensor.element_size() for tensor in stacked + plain)

    def received_bytes(self) -> int:
        """Bytes of new values that this rank gets from the owners in a step; 0 without a process group."""
        if self._sharding is None:
            return 0
        tensors, owners, _ = self._shared_values()
        pairs = zip(tensors, owners, strict=True)
        whole = sum(t.numel() * t.element_size() for t, owner in pairs if owner != self._sharding.rank)
        by_group = ((rows, self.param_groups[index]["params"]) for index, rows in self._rows.items())
        return whole + sum(rows.received_bytes({i: rows_of(p) for i, p in enumerate(ps)}) for rows, ps in by_group)

    def skipped_gradients(self) -> int:
        """How many matrix gradients so far were non-finite and skipped. Synchronises with the device."""
        skipped = sum(int(state["skipped"].sum()) for stacks in self._stacks.values() for state in stacks.states)
        if self._sharding is None:
            return skipped
        return self._sharding.total(skipped, self.param_groups[0]["params"][0].device)

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
            self._follow_moved_parameters(index, group)
            if group["rule"] == "adamw":
                self._step_adamw(group)
            else:
                self._step_matrices(index, group)
        if self._sharding is not None:
            self._exchange(self._sharding)
        return loss

    def _step_matrices(self, index: int, group: dict[str, Any]) -> None:
        stacks, parameters, steps = self._stacks[index], group["params"], group["steps"]
        stacks.check_structure(group)
        present = {i: p.grad for i, p in enumerate(parameters) if p.grad is not None and p.numel()}
        rows_apart = self._rows.get(index)
        if rows_apart is not None:  # from here on the gradients of what this rank owns
            here = {i: rows_of(gradient) for i, gradient in present.items()}
            whole = rows_apart.to_owners(here)
        else:
            whole = present
        gradients = {i: stacks.layouts[i].split(gradient) for i, gradient in whole.items()}
        parts = {} if rows_apart is not None else {i: stacks.layouts[i].split(parameters[i]) for i in gradients}
        moves: list[tuple[Tensor, Tensor, Tensor]] = []  # of each matrix: itself, its direction, whether it is taken
        directions: dict[int, dict[int, tuple[Tensor, Tensor]]] = {i: {} for i in gradients}
        for number, bucket in enumerate(stacks.buckets):
            rows = [slot.parameter for slot in bucket.slots]
            if not any(i in gradients for i in rows):
                continue
            active = tuple(i in gradients for i in rows)
            due = tuple(i in gradients and _is_due(steps[i], group["refresh_interval"]) for i in rows)
            folds = [
                tuple(i in gradients and _folds_into(side, steps[i], group["statistics"]) for i in rows)
                for side in (0, 1)
            ]
            # Autocast, if step() is called inside it, would turn the products below into half precision.
            with torch.autocast(bucket.device.type, enabled=False), full_precision_matmul():
                result = update.fismo_update(
                    stacks.gather(bucket, gradients),
                    stacks.states[number],
                    options_of(group, bucket),
                    active=device_mask(active, bucket.device),
                    refresh=device_mask(due, bucket.device),
                    sides=(device_mask(folds[0], bucket.device), device_mask(folds[1], bucket.device)),
                )
            if any(due) and group["power"] > 0:
                self._check_roots(bucket, stacks.states[number])
            for slot, D, took in zip(bucket.slots, result.direction, result.taken, strict=True):
                if slot.parameter not in gradients:
                    continue
                if rows_apart is None:
                    moves.append((parts[slot.parameter][slot.part], D, took))
                else:
                    directions[slot.parameter][slot.part] = (D, took)
        if rows_apart is not None:
            # A parameter is decayed if all of its matrices take part: rows know nothing of matrices.
            joined = {i: _joined(stacks.layouts[i], found, parameters[i].shape) for i, found in directions.items()}
            moved = rows_apart.to_shards(joined, here)
            moves = [(rows_of(parameters[i]), D.to(here[i].dtype), took) for i, (D, took) in moved.items()]
        if moves:
            _apply(moves, group)
        for i in present:
            steps[i] += 1
            if i in parts and not shares_memory(parameters[i], parts[i]):
                parameters[i].copy_(stacks.layouts[i].join(parts[i], parameters[i].shape))

    def _exchange(self, sharding: Sharding) -> None:
        """Give every rank the new values of what others own."""
        tensors, owners, copies = self._shared_values()
        sharding.exchange(tensors, owners)
        for parameter, layout, parts in copies:
            parameter.copy_(layout.join(parts, parameter.shape))

    def _shared_values(self) -> tuple[list[Tensor], list[int], list[tuple[Tensor, MatrixLayout, list[Tensor]]]]:
        """All matrices and AdamW's parameters, their owners, and those parameters whose matrices are copies."""
        tensors: list[Tensor] = []
        owners: list[int] = []
        copies: list[tuple[Tensor, MatrixLayout, list[Tensor]]] = []
        for index, group in enumerate(self.param_groups):
            if index in self._rows or index not in self._owners:
                continue  # each rank has stepped its own rows
            owners += self._owners[index]
            if group["rule"] == "adamw":
                tensors += group["params"]
                continue
            for parameter, layout in zip(group["params"], self._stacks[index].layouts, strict=True):
                parts = layout.split(parameter)
                tensors += [part for part in parts if part.numel()]
                if not shares_memory(parameter, parts):
                    copies.append((parameter, layout, parts))
        return tensors, owners, copies

    def _check_roots(self, bucket: Bucket, state: update.State) -> None:
        if int(state["failures"].max()) >= MAX_FAILED_REFRESHES:
            raise RuntimeError(
                f"roots of the Fisher factors of {bucket.m} x {bucket.n} matrices failed in "
                f"{MAX_FAILED_REFRESHES} refreshes on end; raise damping or lower lr"
            )

    def _step_adamw(self, group: dict[str, Any]) -> None:
        parameters = [p for p in group["params"] if p.grad is not None and p in self.state]
        if not parameters:
            return
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
        All of it is in memory of its own: later steps do not change what was given.
        """
        own = self.state
        # Only what this rank has: the empty entries stand for others' matrices, too.
        self.state = defaultdict(dict, {p: _cloned(entry) for p, entry in own.items() if entry})
        for index, stacks in self._stacks.items():
            parameters = self.param_groups[index]["params"]
            self.state.update({parameters[i]: entry for i, entry in stacks.entries().items()})
        try:
            result = super().state_dict()  # runs the hooks, with the whole state in sight
        finally:
            self.state = own
        return {**result, "param_groups": copy.deepcopy(result["param_groups"])}

    def full_state_dict(self) -> dict[str, Any] | None:
        """What `state_dict` would give if this process had all of the state: for one checkpoint by all ranks.

        All ranks of the process group call it together; the first one gets it, on the CPU, the others None. Any
        number of ranks can load it: each takes what it owns.
        """
        own = self.state_dict()
        if self._sharding is None:
            return own
        moved = {key: {k: whole_of(v).cpu() for k, v in entry.items()} for key, entry in own["state"].items()}
        gathered = self._sharding.gather_to_first(moved)
        if gathered is None:
            return None
        state: dict[Any, dict[str, Any]] = {}
        for part in gathered:
            for key, entry in part.items():
                state.setdefault(key, {}).update(entry)
        return {**own, "state": dict(sorted(state.items()))}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what `state_dict` gave, bit for bit: state keeps its own dtype whatever the parameter's is.

        Raises:
            ValueError: if groups, parameters, or shapes do not fit, or entries are missing. Nothing is changed then.
        """
        # torch would cast floating-point state to the parameter's dtype (pytorch issue 43706), which loses the float32
        # state of bfloat16 models. So torch loads the groups, and the tensors are copied here, between the hooks.
        before, after = self._optimizer_load_state_dict_pre_hooks, self._optimizer_load_state_dict_post_hooks
        state_dict = state_dict.copy()
        for hook in before.values():
            changed = hook(self, state_dict)
            state_dict = state_dict if changed is None else changed
        # Older states lack what has been added since.
        saved_groups = state_dict["param_groups"]
        state_dict["param_groups"] = [
            {"radius_scale": 1.0, **g} if g.get("rule") == "matrix" else g for g in saved_groups
        ]
        moments, stacked = self._entries_to_load(state_dict)
        self._optimizer_load_state_dict_pre_hooks = OrderedDict()
        self._optimizer_load_state_dict_post_hooks = OrderedDict()
        try:
            super().load_state_dict({**state_dict, "state": {}})
        finally:
            self._optimizer_load_state_dict_pre_hooks = before
            self._optimizer_load_state_dict_post_hooks = after
        self.state.update(moments)
        self._mark_allocated()
        for index, states in stacked.items():
            self._stacks[index].states = states
            self._stacks[index].structure = structure_of(self.param_groups[index])
        for post_hook in after.values():
            post_hook(self)

    def _entries_to_load(
        self, state_dict: dict[str, Any]
    ) -> tuple[dict[Tensor, dict[str, Tensor]], dict[int, list[update.State]]]:
        saved_groups, saved = state_dict["param_groups"], state_dict["state"]
        if [len(g["params"]) for g in saved_groups] != [len(g["params"]) for g in self.param_groups]:
            raise ValueError("the state has other parameter groups than the optimizer")
        moments: dict[Tensor, dict[str, Tensor]] = {}
        stacked: dict[int, list[update.State]] = {}
        for index, (group, saved_group) in enumerate(zip(self.param_groups, saved_groups, strict=True)):
            if saved_group.get("rule") != group["rule"] or saved_group.get("layouts") != group.get("layouts"):
                raise ValueError(
                    f"parameter group {index} of the state was treated by other rules than the optimizer's"
                )
            check_options(saved_group)
            if group["rule"] == "adamw":
                for key, parameter in zip(saved_group["params"], group["params"], strict=True):
                    if parameter not in self.state:  # another rank's
                        continue
                    current = self.state[parameter]
                    moments[parameter] = {name: fetch(saved, key, name, like) for name, like in current.items()}
            else:
                stacked[index] = self._stacks[index].read(saved_group, saved)
        return moments, stacked

    def __getstate__(self) -> dict[str, Any]:
        if self._sharding is not None:
            raise RuntimeError("an optimizer that shares its work with other ranks cannot be copied or pickled")
        return {
            **super().__getstate__(),
            "_adamw_defaults": self._adamw_defaults,
            "_stacks": self._stacks,
            "_sharding": None,
            "_owners": {},
            "_rows": {},
        }


def _expand_form(name: str, form: dict[str, Any], params: list[Any], options: dict[str, Any]) -> dict[str, Any]:
    """The options with the form's, which neither they nor a group's may contradict."""
    given = [options, *(group for group in params if isinstance(group, dict))]
    wrong = [f"{k}={g[k]!r}" for g in given for k, value in form.items() if g.get(k, value) != value]
    if wrong:
        fixed = ", ".join(f"{key}={value!r}" for key, value in form.items())
        raise ValueError(f"{', '.join(wrong)} contradicts the {name} form, which is {fixed}")
    return {**options, **form}


def _is_due(step: int, interval: int) -> bool:
    """Whether new roots are computed in this step (counted from 0) of a parameter.

    Early statistics change fast, so that roots after 1, 2, 4, ... steps are added to those of the interval.
    """
    return step % interval == 0 or (step < interval and step.bit_count() == 1)


def _folds_into(side: int, step: int, statistics: str) -> bool:
    """Whether the statistics of a side (0: rows, 1: columns) are taken in this step (counted from 0) of a parameter."""
    return statistics == "both" or step == 0 or step % 2 == side


def _apply(moves: list[tuple[Tensor, Tensor, Tensor]], group: dict[str, Any]) -> None:
    """W <- (1 - lr weight_decay) W - lr radius_scale D in place, for each (W, D, whether the matrix takes part)."""
    matrices, directions = [W for W, _, _ in moves], [D for _, D, _ in moves]
    if group["weight_decay"]:
        decay = float(group["lr"]) * group["weight_decay"]
        shares = [1 - decay * took for _, _, took in moves]
        if group["cautious_weight_decay"]:
            for W, D, share in zip(matrices, directions, shares, strict=True):
                W.mul_(torch.where(W * D > 0, share, 1))
        else:
            torch._foreach_mul_(matrices, shares)
    torch._foreach_add_(matrices, directions, alpha=-float(group["lr"]) * group["radius_scale"])


def _matrices(group: dict[str, Any]) -> list[tuple[Slot, float]]:
    """All matrices of a group, with what a step of each costs."""
    found = []
    for index, (parameter, plain) in enumerate(zip(group["params"], group["layouts"], strict=True)):
        for part, (m, n) in enumerate(layout_from_plain(plain).shapes(parameter)):
            if m * n:
                diagonal = [
                    is_diagonal(dim, other, group["max_factor_dim"], group["max_factor_ratio"])
                    for dim, other in ((m, n), (n, m))
                ]
                dense = 0 if group["power"] == 0 else 2 - sum(diagonal)
                cost = matrix_cost(m, n, dense_sides=dense, refresh_interval=group["refresh_interval"])
                found.append((Slot(index, part), cost))
    return found


def _joined(layout: MatrixLayout, found: dict[int, tuple[Tensor, Tensor]], shape: torch.Size) -> tuple[Tensor, Tensor]:
    """The directions of a parameter's matrices as one of its shape, and whether all of them take part."""
    parts = [found[part] for part in sorted(found)]
    return layout.join([D for D, _ in parts], shape), torch.stack([took for _, took in parts]).all()


def _cloned(entry: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in entry.items()}


def _names(group: dict[str, Any]) -> list[str]:
    return group.get("param_names") or [f"parameter {index}" for index in range(len(group["params"]))]
