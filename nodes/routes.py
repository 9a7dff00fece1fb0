"""What the editor asks before a run: what a profile means on this machine, how a recipe splits its steps.

Two routes that answer with plain data and change nothing. They work in a thread, because the host's event loop also
carries the progress of whatever runs, and one after the other, because the first question may have to measure the
device. While something runs nothing is measured, which would disturb both.
"""

import asyncio
from collections.abc import Callable, Mapping

from aiohttp import web
from server import PromptServer

from ..wan_core.errors import InputError
from ..wan_core.estimate import Knowledge
from ..wan_core.outlook import Facts, profile_outlook, recipe_outlook
from ..wan_core.recipes import SampleRequest, VideoSize, recipe
from ..wan_core.specs import T2V_A14B_TRANSFORMER, TransformerSpec
from ..wan_core.storage import NOTHING_STORED, StoredLayers, storable
from ..wan_core.workload import Workload
from . import host
from .load import open_pair
from .optimize import chosen_profile
from .sample import chosen_recipe

_RELEASED_SIZE = VideoSize(width=1280, height=720, num_frames=81)


def register_routes() -> None:
    """Add the routes; the host serves them from its start on."""
    routes, turn = PromptServer.instance.routes, asyncio.Lock()
    routes.post("/wan_velocity/profile")(_answering(about_profile, turn))
    routes.post("/wan_velocity/recipe")(_answering(about_recipe, turn))


def about_profile(asked: Mapping[str, object]) -> Facts:
    """Widgets of a profile node in `widgets`; the size, experts and recipe of its graph where it has them."""
    widgets = dict(asked["widgets"])
    profile = chosen_profile(widgets.pop("preset"), widgets)
    size = VideoSize(**asked["size"]) if asked.get("size") else _RELEASED_SIZE
    spec, stored, model = _spec(asked.get("experts"))
    request = SampleRequest(recipe=chosen_recipe(asked["recipe"]) if asked.get("recipe") else recipe("official"))
    hardware = host.hardware(measure=PromptServer.instance.prompt_queue.get_tasks_remaining() == 0)
    workload = Workload(request=request, latent_size=size.latent_size, stored=stored)
    facts = profile_outlook(profile, Knowledge.of(hardware), spec, workload)
    return {**facts, "size": str(size), "model": model}


def about_recipe(asked: Mapping[str, object]) -> Facts:
    """Widgets of a recipe in `recipe`, and of the request's range in `request`."""
    return recipe_outlook(SampleRequest(recipe=chosen_recipe(asked["recipe"]), **asked.get("request", {})))


def _spec(experts: Mapping[str, str] | None) -> tuple[TransformerSpec, StoredLayers, str]:
    """The experts of the graph, if their files are here; else the released model in plain weights."""
    if experts and experts["high_noise"] in host.model_choices("diffusion_models"):
        try:
            pair = open_pair(experts["high_noise"], experts["low_noise"])
            return pair.spec, storable(pair), experts["high_noise"]
        except InputError:
            # Load Wan Experts says what is wrong with its files; the profile speaks of the released model meanwhile.
            pass
    return T2V_A14B_TRANSFORMER, NOTHING_STORED, "Wan 2.2 T2V A14B"


def _answering(answer: Callable[[Mapping[str, object]], Facts], turn: asyncio.Lock) -> Callable[[web.Request], object]:
    async def handler(request: web.Request) -> web.Response:
        try:
            asked = await request.json()
            async with turn:
                return web.json_response(await asyncio.to_thread(answer, asked))
        except InputError as error:
            return web.json_response({"problem": str(error)})
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            return web.json_response({"problem": f"not understood: {error}"}, status=400)

    return handler
