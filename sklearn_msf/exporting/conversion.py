"""Conversion of torch modules to ONNX, and a loop over one of them.

Torch has two exporters. This is the one over `torch.export`: the other is deprecated, and makes
graphs of several times as many operations, most of which compute shapes. The steps of an ODE are an
ONNX Loop over the graph of one evaluation of the velocity; unrolled, 25 evaluations would be 25
networks, which a runtime takes long to load.
"""

import contextlib
import io
import logging
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sklearn_msf.runtime.locks import fork_safe_lock

__all__ = ["looped", "to_onnx"]

# Of 2022: the first one with antialiased resizing, and what every runtime has by now.
_OPSET = 18
_BATCH = "n"
_LOGGERS = ("torch.onnx", "torch.export", "torch.fx", "onnxscript", "onnx_ir")
# The exporter changes settings of the whole process, and puts back what it has found.
_EXPORTING = fork_safe_lock()


@torch.no_grad()
def to_onnx(
    module: nn.Module,
    examples: Sequence[Tensor],
    inputs: Sequence[str],
    outputs: Sequence[str],
    prefix: str = "",
) -> Any:
    """Convert a module to an ONNX model.

    Parameters
    ----------
    module : nn.Module
        The module, which is run once.
    examples : sequence of Tensor
        Arguments for it. The first axis of each is the batch, of any size; 0-d tensors have none.
    inputs, outputs : sequence of str
        Names of its arguments and of its results.
    prefix : str, default=""
        Beginning of the names of all other values.

    Returns
    -------
    onnx.ModelProto
    """
    from onnx import compose

    # The tracer takes a batch of 1 for one that is to be broadcast, and forbids it here; the graph
    # has no such distinction.
    batch = torch.export.Dim(_BATCH, min=2)
    # What is prepared at the first call then consists of tensors with values, not of traced ones.
    module.eval()(*examples)
    shapes = tuple({0: batch} if example.ndim else {} for example in examples)
    with _EXPORTING, _quiet():
        # Given a module itself, the exporter would try to trace it in other ways if this one fails,
        # and these take values of the example for constants.
        traced = torch.export.export(module, tuple(examples), dynamic_shapes=shapes, strict=False)
        program = torch.onnx.export(
            traced,
            (),
            None,
            input_names=list(inputs),
            output_names=list(outputs),
            opset_version=_OPSET,
            dynamo=True,
            verbose=False,
        )
        assert program is not None
        model = program.model_proto
    _name_batches(model.graph)
    if not prefix:
        return model
    return compose.add_prefix(model, prefix, rename_inputs=False, rename_outputs=False)


def looped(
    start: Any,
    step: Any,
    end: Any,
    numbers: Mapping[str, Sequence[float]],
    state: Sequence[str],
) -> Any:
    """Join three models: one that makes a state, one that is repeated, one that reads the state.

    Parameters
    ----------
    start : onnx.ModelProto
        Its outputs are the first state and what the step needs besides.
    step : onnx.ModelProto
        Its inputs are the numbers, the state, and other outputs of `start`; its outputs are the
        next state, in the same order.
    end : onnx.ModelProto
        Its inputs are named "last_" and the name of a part of the state.
    numbers : mapping of str to sequence of float
        Inputs of the step that differ from one repetition to the next: values of each one.
    state : sequence of str
        Names of the state.

    Returns
    -------
    onnx.ModelProto
    """
    from onnx import TensorProto, helper, numpy_helper

    constants = {f"all_{name}": np.array(of, dtype=np.float32) for name, of in numbers.items()}
    (n_repetitions,) = {len(values) for values in constants.values()}
    constants |= {"n_steps": np.array(n_repetitions, dtype=np.int64), "always": np.array(True)}
    values = {value.name: value for value in step.graph.input}
    body = helper.make_graph(
        [
            *[helper.make_node("Gather", [f"all_{name}", "iteration"], [name]) for name in numbers],
            helper.make_node("Identity", ["goes_on"], ["still_goes_on"]),
            *step.graph.node,
        ],
        "step",
        [
            helper.make_tensor_value_info("iteration", TensorProto.INT64, []),
            helper.make_tensor_value_info("goes_on", TensorProto.BOOL, []),
            *[values[name] for name in state],
        ],
        [
            helper.make_tensor_value_info("still_goes_on", TensorProto.BOOL, []),
            *step.graph.output,
        ],
    )
    carried = [f"first_{name}" for name in state]
    loop = helper.make_node(
        "Loop",
        ["n_steps", "always", *carried],
        [f"last_{name}" for name in state],
        body=body,
    )
    # The step has the name of a part of the state for its input.
    graph = helper.make_graph(
        [*start.graph.node, loop, *end.graph.node],
        "sampler",
        list(start.graph.input),
        list(end.graph.output),
        [
            *start.graph.initializer,
            *step.graph.initializer,
            *end.graph.initializer,
            *[numpy_helper.from_array(value, name) for name, value in constants.items()],
        ],
    )
    return helper.make_model(
        graph, opset_imports=list(step.opset_import), ir_version=step.ir_version
    )


def _name_batches(graph: Any) -> None:
    """Name the batch axis `n`; the exporter numbers it anew in each graph."""
    for value in [*graph.input, *graph.output, *graph.value_info]:
        for axis in value.type.tensor_type.shape.dim:
            # Such as "s29" and "2*s29". Other axes have values, which a name would replace.
            if axis.dim_param:
                axis.dim_param = re.sub(r"\bs\d+\b", _BATCH, axis.dim_param)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence the remarks of the exporter, which are about itself.

    Where it fails, it also prints the whole graph to the standard error stream, ahead of the error.
    """
    levels = {name: logging.getLogger(name).level for name in _LOGGERS}
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        for name in _LOGGERS:
            logging.getLogger(name).setLevel(logging.ERROR)
        try:
            yield
        finally:
            for name, level in levels.items():
                logging.getLogger(name).setLevel(level)
