"""What the editor is told: live events of a run, for whoever queued it only; answers before a run."""

import json
import urllib.error

import pytest

from tests.host.client import Client, Prompt
from tests.host.graphs import MINI_EXPERTS, inputs, node_id, set_recipe
from tests.host.server import ComfyServer

LIVE = "wan_velocity.live"
CUSTOM = {"recipe": "custom", "steps": 4, "shift": 5.0, "solver": "euler", "guidance_high": 4.0, "guidance_low": 3.0}


def test_a_run_is_told_to_its_owner_alone(server: ComfyServer, graph: Prompt) -> None:
    owner, other = Client(f"127.0.0.1:{server.port}"), Client(f"127.0.0.1:{server.port}")
    list(other.listen(0.2))
    inputs(graph, "WanVelocitySampler").update(seed=11)
    run = owner.run(graph)
    overheard = [kind for kind, _ in other.listen(0.5)]
    owner.close()
    other.close()
    assert run.status == "execution_success", run.error
    assert "status" in overheard and LIVE not in overheard
    states = list(run.named(LIVE))
    assert {state["node"] for state in states} == {node_id(graph, "WanVelocitySampler")}
    phases = list(dict.fromkeys(state["phase"] for state in states))
    assert phases[0] == "prepare" and phases[-1] == "done" and "sample" in phases
    assert [state["num_done"] for state in states if state["phase"] == "sample"][-1] == 3
    last = states[-1]
    assert last["plan"]["split"] == ["high", "high", "low", "low"] and last["memory"]["total"] > 0
    shown = run.outputs[node_id(graph, "WanVelocitySampler")]["wan_velocity"][0]
    assert shown["report"]["text"].count("s/step") >= 2 and shown["state"]["phase"] == "done"


def test_a_job_that_nobody_waits_for_is_told_to_nobody(client: Client, graph: Prompt) -> None:
    list(client.listen(0.2))
    inputs(graph, "WanVelocitySampler").update(seed=12)
    queued = client.post("/prompt", {"prompt": graph})["prompt_id"]
    heard = [kind for kind, _ in client.listen(5.0)]
    assert client.get(f"/history/{queued}")[queued]["status"]["status_str"] == "success"
    assert LIVE not in heard


def test_a_stopped_run_says_so(client: Client, graph: Prompt) -> None:
    set_recipe(graph, steps=50)
    inputs(graph, "WanVelocitySampler").update(seed=13)

    def stop(kind: str, data: dict) -> None:
        if kind == LIVE and data["num_done"] == 1:
            client.interrupt()

    run = client.run(graph, on_event=stop)
    assert run.status == "execution_interrupted"
    assert list(run.named(LIVE))[-1]["phase"] == "stopped"


def test_recipe_route(client: Client) -> None:
    facts = client.post("/wan_velocity/recipe", {"recipe": {"recipe": "official"}, "request": {"end_step": 10}})
    assert facts["split"] == ["high"] * 10 and facts["num_steps"] == 40
    custom = client.post("/wan_velocity/recipe", {"recipe": CUSTOM | {"boundary": 0.875}})
    assert "few steps need a distilled LoRA" in custom["warnings"][0]
    mistake = client.post("/wan_velocity/recipe", {"recipe": CUSTOM | {"boundary": 2.0}})
    assert mistake["problem"].startswith("boundary is 2.0")


def test_profile_route(client: Client) -> None:
    asked = {
        "widgets": {"preset": "auto", "compile": "default"},
        "experts": MINI_EXPERTS,
        "size": {"width": 128, "height": 128, "num_frames": 17},
    }
    facts = client.post("/wan_velocity/profile", asked)
    assert facts["size"] == "128x128x17" and facts["problem"] is None
    (compiled,) = (each for each in facts["plan"]["decisions"] if each["topic"] == "compile")
    assert compiled["degraded"] and "NVIDIA" in compiled["reason"]
    outside = client.post("/wan_velocity/profile", asked | {"experts": {"high_noise": "../x", "low_noise": "../y"}})
    assert outside["model"] == "Wan 2.2 T2V A14B" and "this run needs" in outside["problem"]


@pytest.mark.parametrize("body", [{}, [], {"widgets": {}}, {"widgets": {"preset": 3}}, {"recipe": {}}, 3])
@pytest.mark.parametrize("route", ["profile", "recipe"])
def test_nonsense_is_answered_and_breaks_nothing(client: Client, route: str, body: object) -> None:
    try:
        answer = client.post(f"/wan_velocity/{route}", body)
    except urllib.error.HTTPError as error:
        assert error.code == 400
        answer = json.load(error)
    assert answer["problem"]
