"""The nodes, V3 schema only. Each parses its widgets into typed values and makes one call into `wan_core`."""

from comfy_api.latest import ComfyExtension, io

from . import accelerate, compare, decode, encode, explain, host, load, lora, optimize, routes, sample


class WanVelocityExtension(ComfyExtension):
    """Everything this pack adds to ComfyUI."""

    async def on_load(self) -> None:
        host.warn_of_folder()
        host.register_pack_models()
        routes.register_routes()

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [
            load.LoadExperts,
            lora.LoraPair,
            optimize.OptimizationProfileNode,
            load.LoadTextEncoder,
            encode.EncodeText,
            encode.EmptyLatent,
            sample.MoeSampler,
            accelerate.AccelerateNativeModel,
            load.LoadVae,
            decode.DecodeLatent,
            encode.EncodeVideo,
            explain.ShowPlan,
            compare.Compare,
        ]
