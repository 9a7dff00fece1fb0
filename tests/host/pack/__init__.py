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


class Held(io.ComfyNode):
    """Bytes of the experts' weights on the device and in copies on the host; before that, all is evicted if asked.

    A host on a CPU evicts nothing in the middle of a graph by itself, so this asks it as another model on a card would.
    """

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="HostTestHeld",
            category="host test",
            inputs=[
                io.AnyType.Input("after"),
                io.AnyType.Input("experts"),
                io.Boolean.Input("evict"),
                io.String.Input("label"),
            ],
            outputs=[],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, after: object, experts: object, evict: bool, label: str) -> io.NodeOutput:
        import comfy.model_management

        if evict:
            comfy.model_management.free_memory(1e30, comfy.model_management.get_torch_device())
        weights = [patcher.weights for patcher in experts.get_models()]
        held = {
            "device": sum(each.bytes_on_device for each in weights),
            "copies": sum(each.bytes_on_host for each in weights),
            "all": sum(each.nbytes for each in weights),
        }
        return io.NodeOutput(ui={"text": [json.dumps(held)]})


class OtherModel(io.ComfyNode):
    """A MODEL that is no Wan."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(node_id="HostTestOtherModel", category="host test", inputs=[], outputs=[io.Model.Output()])

    @classmethod
    def execute(cls) -> io.NodeOutput:
        import comfy.model_base
        import comfy.model_patcher

        model = comfy.model_base.BaseModel.__new__(comfy.model_base.BaseModel)
        torch.nn.Module.__init__(model)
        model.diffusion_model = torch.nn.Linear(1, 1)
        cpu = torch.device("cpu")
        return io.NodeOutput(comfy.model_patcher.ModelPatcher(model, cpu, cpu))


class Meddle(io.ComfyNode):
    """A MODEL with everything that other packs hang on a Wan model, each piece of which changes the result."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="HostTestMeddle",
            category="host test",
            inputs=[
                io.Model.Input("model"),
                io.Combo.Input("how", options=["override", "patches", "replaced", "compiled"]),
            ],
            outputs=[io.Model.Output()],
        )

    @classmethod
    def execute(cls, model: object, how: str) -> io.NodeOutput:
        clone = model.clone()
        _MEDDLERS[how](clone)
        return io.NodeOutput(clone)


def _override(model: object) -> None:
    """Attention of our own making for the text, everything else passed on."""

    def override(function, q, k, v, *args, **kwargs):
        if k.shape[1] != q.shape[1]:
            return v.mean(1, keepdim=True).expand_as(q)
        return function(q, k, v, *args, **kwargs)

    model.model_options["transformer_options"]["optimized_attention_override"] = override


def _patches(model: object) -> None:
    model.set_model_attn1_patch(lambda args: args["x"] * 0.5 + 0.01 * args["q"].mean())
    model.set_model_attn2_patch(lambda args: args["x"] * 1.1)
    model.set_model_double_block_patch(lambda args: {"img": args["img"] * 0.95})

    def twice(args: dict, extra: dict) -> dict:
        return extra["original_block"]({**args, "img": extra["original_block"](args)["img"]})

    model.set_model_patch_replace(twice, "dit", "double_block", 1)


def _replace(model: object) -> None:
    """Block 0 left out, and the self attention of block 1 doubled, as object patches."""
    model.add_object_patch("diffusion_model.blocks.0.forward", lambda x, *args, **kwargs: x)
    attention = model.get_model_object("diffusion_model").blocks[1].self_attn
    own = type(attention).forward
    model.add_object_patch(
        "diffusion_model.blocks.1.self_attn.forward", lambda *args, **kwargs: 2 * own(attention, *args, **kwargs)
    )


def _compile(model: object) -> None:
    """Every block compiled by itself, as some packs do; traced, but not turned into other code."""
    from comfy_api.torch_helpers import set_torch_compile_wrapper

    number = len(model.get_model_object("diffusion_model").blocks)
    set_torch_compile_wrapper(model, backend="eager", keys=[f"diffusion_model.blocks.{i}" for i in range(number)])


_MEDDLERS = {"override": _override, "patches": _patches, "replaced": _replace, "compiled": _compile}


class HostTestExtension(ComfyExtension):
    """The test nodes."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [SaveTensor, RandomLatent, ClipForm, LoadedModels, Held, OtherModel, Meddle]


async def comfy_entrypoint() -> HostTestExtension:
    return HostTestExtension()
