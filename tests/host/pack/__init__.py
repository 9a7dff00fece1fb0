"""Nodes for the host suite: tensors in and out of a graph. Loaded by ComfyUI beside the pack, never shipped."""

import json
import os

import folder_paths
import torch
from comfy_api.latest import ComfyExtension, io
from safetensors.torch import save_file


class SaveTensor(io.ComfyNode):
    """Save a LATENT, CONDITIONING, IMAGE or SIGMAS as `name`.safetensors in the output folder."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="HostTestSaveTensor",
            category="host test",
            inputs=[io.AnyType.Input("value"), io.String.Input("name")],
            outputs=[],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, value: object, name: str) -> io.NodeOutput:
        tensor = value["samples"] if isinstance(value, dict) else value[0][0] if isinstance(value, list) else value
        path = os.path.join(folder_paths.get_output_directory(), f"{name}.safetensors")
        save_file({"tensor": tensor.contiguous().cpu()}, path)
        return io.NodeOutput(ui={"text": [json.dumps(list(tensor.shape))]})


class RandomLatent(io.ComfyNode):
    """A random LATENT, with any number of channels, and with a mask where asked."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="HostTestRandomLatent",
            category="host test",
            inputs=[
                io.String.Input("shape", default="1,16,3,8,8"),
                io.Int.Input("seed", default=0),
                io.Boolean.Input("mask", default=False),
            ],
            outputs=[io.Latent.Output()],
        )

    @classmethod
    def execute(cls, shape: str, seed: int, mask: bool) -> io.NodeOutput:
        size = tuple(map(int, shape.split(",")))
        latent = {"samples": torch.randn(size, generator=torch.Generator().manual_seed(seed))}
        if mask:
            latent["noise_mask"] = torch.ones(1, *size[-2:])
        return io.NodeOutput(latent)


class ClipForm(io.ComfyNode):
    """CONDITIONING in the form of a native Wan text encode: [1, 512, width], zeros from token `length` on."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="HostTestClipForm",
            category="host test",
            inputs=[
                io.Int.Input("width", default=4096),
                io.Int.Input("length", default=12),
                io.Int.Input("seed", default=0),
            ],
            outputs=[io.Conditioning.Output()],
        )

    @classmethod
    def execute(cls, width: int, length: int, seed: int) -> io.NodeOutput:
        tokens = torch.randn(1, length, width, generator=torch.Generator().manual_seed(seed))
        return io.NodeOutput([[torch.nn.functional.pad(tokens, (0, 0, 0, 512 - length)), {"pooled_output": None}]])


class LoadedModels(io.ComfyNode):
    """What the host counts of our weights: class name and loaded bytes of each patcher in its list."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="HostTestLoadedModels",
            category="host test",
            inputs=[io.AnyType.Input("after"), io.String.Input("label")],
            outputs=[],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, after: object, label: str) -> io.NodeOutput:
        import comfy.model_management

        patchers = comfy.model_management.loaded_models()
        rows = [[type(patcher.model).__name__, patcher.loaded_size(), patcher.model_size()] for patcher in patchers]
        return io.NodeOutput(ui={"text": [json.dumps(rows)]})


class HostTestExtension(ComfyExtension):
    """The test nodes."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [SaveTensor, RandomLatent, ClipForm, LoadedModels]


async def comfy_entrypoint() -> HostTestExtension:
    return HostTestExtension()
