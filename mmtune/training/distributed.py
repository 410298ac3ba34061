"""Device, precision, process group and sharding: the only file that knows accelerate and FSDP.

`replicate` keeps the whole model on every rank, and sums the gradients of what trains over the ranks, in buckets, once
for each stream of a step. It is what a data-parallel wrapper does, without the wrapper: the model keeps its parameter
names, a step may leave out whole groups, and a run of one rank does none of it.

`shard` cuts the layers of the language model over the ranks with `fully_shard` of PyTorch (FSDP2): each rank holds a
part of every frozen matrix and puts a layer together when it is computed. What trains stays whole on every rank; with
`shard_all` it is cut too, and so are its gradients and the state of its optimizer. Embedding, head, encoders and
connectors are never cut: how often a rank uses them depends on its own rows.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

from mmtune import dtypes
from mmtune.errors import ConfigError, MmtuneError
from mmtune.training.watchdog import Watchdog

if TYPE_CHECKING:
    from mmtune.llm.base import LLM
    from mmtune.params import Named

Strategy = Literal["replicate", "shard", "shard_all"]

BUCKET = 64 << 20
"""Bytes of gradients that are summed in one go."""
SPARE = 60.0
"""Seconds that a collective may take beyond the deadline: what names the guilty rank comes first."""


class Runtime:
    """One process of a run.

    Args:
        device: `auto` takes the accelerator of this rank where there is one; otherwise a torch device name.
        precision: `bf16` computes matrix products in bfloat16 under autocast and keeps frozen weights in
            bfloat16; weights that train, their gradients and their optimizers stay in float32.
        strategy: what each rank holds, see above. One rank alone holds everything.
        offload: keep what is cut in the main memory, and bring it to the device layer by layer.
        compile: compile the layers of the language model.
        deadline: seconds that a rank may hold up the others.
    """

    def __init__(
        self,
        device: str = "auto",
        precision: dtypes.Precision = "fp32",
        strategy: Strategy = "replicate",
        offload: bool = False,
        compile: bool = False,
        deadline: float = 600.0,
    ) -> None:
        from accelerate import PartialState

        limit = self._limit = timedelta(seconds=deadline + SPARE)
        on_cpu = device == "cpu" or (device == "auto" and _best().type == "cpu")
        if offload and not on_cpu and int(os.environ.get("WORLD_SIZE", 1)) > 1:
            # what is in the main memory is gathered there, for which accelerate's own choice has no backend
            torch.distributed.init_process_group("cpu:gloo,cuda:nccl", timeout=limit)
        # Only the process group is accelerate's: its device and precision are settled once for a whole process, and
        # a process may train twice.
        # Without an accelerator it forms no group unless the CPU is requested explicitly.
        self._state = PartialState(cpu=on_cpu, timeout=limit)
        self.rank: int = self._state.process_index
        self.world: int = self._state.num_processes
        self.precision, self.strategy, self.offload, self.compile = precision, strategy, offload, compile
        if device == "auto":
            self.device = self._state.device if self.world > 1 else _best()
        else:
            self.device = _device(device)
        self._watchdog = Watchdog(self.rank, self.world, deadline) if self.world > 1 else None
        self._gloo: torch.distributed.ProcessGroup | None = None
        self._barriers = 0

    @property
    def is_main(self) -> bool:
        """Whether this rank writes files and talks."""
        return self.rank == 0

    def autocast(self, precision: dtypes.Precision | None = None) -> AbstractContextManager[None]:
        """Within, matrices are multiplied in this precision, the run's own when none is given."""
        half = (precision or self.precision) == "bf16"
        # there is something to switch off only within the context of another precision
        if not half and not torch.is_autocast_enabled(self.device.type):
            return nullcontext()
        return torch.autocast(self.device.type, torch.bfloat16, enabled=half)

    # ------------------------------------------------------------------------------------------------------ the model

    def parallelize(
        self,
        model: nn.Module,
        say: Callable[[str], None] = lambda line: None,
        precision: dtypes.Precision | None = None,
    ) -> bool:
        """Move the model to the device, cut as the strategy says, with the types that `mmtune.dtypes` settles. What is
        cut has new parameters under the same names, see `refresh_parameters`.

        Args:
            say: gets a line where frozen weights were held in another type.
            precision: of frozen weights; the run's own when none is given.

        Returns:
            Whether the type of a frozen weight changed.

        Raises ConfigError where there is nothing to cut.
        """
        settled = dtypes.settle(model, precision or self.precision)
        for what, (first, count) in settled.items():
            why = f"as run.precision={self.precision} says"
            say(f"frozen weights from {what}, {why}: {count:,} values, {first} the first")
        if self.strategy != "replicate" and self.world > 1:
            # layer by layer from the main memory, so that the whole model need not fit the device at any moment
            self._cut(model.llm)
        if not self.offload or self.world == 1:
            model.to(self.device)
        else:
            _move_uncut(model, self.device)
        if self.compile:
            for layer in model.llm.layers():
                layer.compile(dynamic=True)  # in place: names and classes stay
        return bool(settled)

    def _cut(self, llm: LLM) -> None:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, OffloadPolicy, fully_shard

        trained = {p for p in llm.parameters() if p.requires_grad} if self.strategy == "shard" else set()
        layers = llm.layers()
        inside = {p for layer in layers for p in layer.parameters()}
        if not inside - trained:
            raise ConfigError(
                f"run.strategy=shard with layers that train whole ({len(inside)} tensors)",
                "frozen weights to cut",
                "run.strategy=shard_all cuts what trains too",
            )
        if self.strategy == "shard_all" and llm.step_callbacks:
            raise ConfigError(
                f"run.strategy=shard_all with {', '.join(llm.step_callbacks)}, which works on whole tensors",
                "a tuner that is only trained",
                "run.strategy=shard",
            )
        mesh = init_device_mesh(self.device.type, (self.world,))
        policy = CPUOffloadPolicy(pin_memory=self.device.type == "cuda") if self.offload else OffloadPolicy()
        for layer in layers:
            ignored = {p for p in layer.parameters() if p in trained}
            fully_shard(layer, mesh=mesh, reshard_after_forward=True, offload_policy=policy, ignored_params=ignored)
        # a root over the layers, with nothing of its own, so that they fetch ahead of each other
        root = llm.decoder()
        mine = {p for layer in layers for p in layer.parameters()}
        rest = {p for p in root.parameters() if p not in mine or p in trained}
        fully_shard(root, mesh=mesh, offload_policy=policy, ignored_params=rest)
        for module in llm.modules():
            if isinstance(module, FSDPModule):
                # sums, as everywhere: the step divides by the number of supervised tokens
                module.set_gradient_divide_factor(1.0)
                module.set_force_sum_reduction_for_comms(True)

    def refresh_parameters(self, model: nn.Module, groups: dict[str, Named]) -> dict[str, Named]:
        """The same groups with the parameters that the model has now."""
        now = dict(model.named_parameters())
        return {group: [(name, now[name]) for name, _ in named] for group, named in groups.items()}

    def sum_gradients(self, parameters: Iterable[Tensor]) -> None:
        """Add up `.grad` over all ranks, in place. A parameter without a gradient counts as zeros.

        Every rank must call this with the same parameters in the same order. Gradients of parameters that are cut
        were summed in the backward pass.
        """
        if self.world == 1:
            return
        whole = [parameter for parameter in parameters if not hasattr(parameter, "to_local")]
        for parameter in whole:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        with self.collective("sum of gradients"):
            for grads in _buckets([parameter.grad for parameter in whole]):
                flat = torch.cat([grad.reshape(-1) for grad in grads])
                torch.distributed.all_reduce(flat)
                for grad, part in zip(grads, flat.split([grad.numel() for grad in grads]), strict=True):
                    grad.copy_(part.view_as(grad))

    # ------------------------------------------------------------------------------------------------------- all ranks

    def all_reduce(self, values: Sequence[float]) -> list[float]:
        """Sum each value over the ranks, in float64."""
        if self.world == 1:
            return [float(value) for value in values]
        # gloo and NCCL both take float64
        tensor = torch.tensor(values, dtype=torch.float64, device=self.device)
        with self.collective("sum of counts"):
            torch.distributed.all_reduce(tensor)
            return tensor.tolist()

    def any(self, flag: bool) -> bool:
        """Whether any rank says yes; all ranks get the same answer."""
        return self.all_reduce([float(flag)])[0] > 0

    def all_gather_strings(self, words: Sequence[str]) -> list[str]:
        """The words of all ranks, in the order of the ranks."""
        if self.world == 1:
            return list(words)
        mine = json.dumps(list(words)).encode()
        sizes = self.all_reduce([len(mine) if rank == self.rank else 0 for rank in range(self.world)])
        table = torch.zeros(self.world, int(max(sizes)), dtype=torch.int32, device=self.device)
        table[self.rank, : len(mine)] = torch.tensor(list(mine), dtype=torch.int32)
        with self.collective("words of all"):
            torch.distributed.all_reduce(table)
            rows = [bytes(row[: int(size)]) for row, size in zip(table.tolist(), sizes, strict=True)]
        return [word for row in rows for word in json.loads(row)]

    def all_gather(self, data: bytes) -> list[bytes]:
        """The data of all ranks, in their order."""
        with self.collective("lengths of samples"):
            sizes = self._sizes([len(data)])
            table = torch.zeros(self.world, max(1, max(size for (size,) in sizes)), dtype=torch.uint8)
            torch.distributed.all_gather(list(table.unbind()), _bytes(data, table.shape[1]), group=self._cpu_group())
        return [bytes(row[:size].numpy()) for row, (size,) in zip(table, sizes, strict=True)]

    def all_to_all(self, parts: Sequence[bytes]) -> list[bytes]:
        """A part for each rank; gives what each rank had for this one."""
        with self.collective("samples for each other"):
            coming = [sizes[self.rank] for sizes in self._sizes([len(part) for part in parts])]
            taken, going = torch.empty(sum(coming), dtype=torch.uint8), [len(part) for part in parts]
            sent = _bytes(b"".join(parts), sum(going))
            torch.distributed.all_to_all_single(taken, sent, coming, going, group=self._cpu_group())
        return [bytes(part.numpy()) for part in taken.split(coming)]

    def _sizes(self, mine: Sequence[int]) -> list[list[int]]:
        """Numbers of all ranks, as many of each."""
        table = torch.zeros(self.world, len(mine), dtype=torch.int64)
        torch.distributed.all_gather(list(table.unbind()), torch.tensor(mine), group=self._cpu_group())
        return table.tolist()

    def _cpu_group(self) -> torch.distributed.ProcessGroup | None:
        """A group for what is in the main memory."""
        if self.device.type != "cpu" and self._gloo is None:
            self._gloo = torch.distributed.new_group(backend="gloo", timeout=self._limit)
        return self._gloo

    def barrier(self) -> None:
        """Wait for all ranks, for as long as it takes; a rank that is gone or hangs ends the run."""
        if self._watchdog is not None:
            self._barriers += 1
            with self.collective("meeting"):
                self._watchdog.barrier(str(self._barriers))

    # ------------------------------------------------------------------------------------------------ who holds up whom

    def enter_stage(self, stage: str, samples: Sequence[str] = ()) -> None:
        """Say where this rank is, for the others; from the first time on, the deadline counts."""
        if self._watchdog is not None:
            self._watchdog.enter_stage(stage, samples)

    def collective(self, what: str) -> AbstractContextManager[None]:
        return nullcontext() if self._watchdog is None else self._watchdog.collective(what)

    def without_deadline(self, what: str) -> AbstractContextManager[None]:
        """Around what may take longer than the deadline, on this rank alone too."""
        return nullcontext() if self._watchdog is None else self._watchdog.without_deadline(what)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Around a run. An error caused by the end of another rank is reported as that end; closes the group."""
        if self._watchdog is None:
            yield
            return
        state = "done"
        try:
            yield
        except BaseException as error:
            state = f"{type(error).__name__}: {error}"
            named = isinstance(error, MmtuneError) or not isinstance(error, Exception)
            if not named and (found := self._watchdog.dead_rank()) is not None:
                raise MmtuneError(
                    f"{found}; rank {self.rank} stops",
                    "ranks that live as long as the run",
                    "look at that rank's own words; then go on with --resume",
                ) from error
            raise
        finally:
            self._watchdog.end(state, wait=30.0 if state == "done" else 0.0)
            with contextlib.suppress(RuntimeError):
                if torch.distributed.is_initialized() and (state == "done" or self.device.type == "cpu"):
                    torch.distributed.destroy_process_group()

    def close(self) -> None:
        """End the process group of a run that used no `running`."""
        with self.running():
            pass


def _move_uncut(model: nn.Module, device: torch.device) -> None:
    """Move all tensors that are not cut; those are brought to the device layer by layer."""
    for module in model.modules():
        for held in (module._parameters, module._buffers):
            for name, tensor in held.items():
                if tensor is None or hasattr(tensor, "to_local"):
                    continue
                if isinstance(tensor, nn.Parameter):
                    tensor.data = tensor.data.to(device)
                else:
                    held[name] = tensor.to(device)


def _bytes(data: bytes, size: int) -> Tensor:
    """uint8 [size], zeros after the data."""
    tensor = torch.zeros(size, dtype=torch.uint8)
    if data:
        tensor[: len(data)] = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    return tensor


def _buckets(grads: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Gradients of one type each, up to BUCKET bytes together, or one alone."""
    by_type: dict[torch.dtype, list[Tensor]] = {}
    for grad in grads:
        by_type.setdefault(grad.dtype, []).append(grad)
    for same in by_type.values():
        bucket: list[Tensor] = []
        size = 0
        for grad in same:
            if bucket and size + grad.nbytes > BUCKET:
                yield bucket
                bucket, size = [], 0
            bucket.append(grad)
            size += grad.nbytes
        yield bucket


def _best() -> torch.device:
    """The accelerator of this machine, or the processor."""
    return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(
            seen=f"device {name!r}", expected="auto, cpu, cuda, cuda:N or mps", hint=str(error)
        ) from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            seen=f"device {name!r}",
            expected="a machine with a CUDA device",
            hint="take run.device=auto or run.device=cpu",
        )
    return device
