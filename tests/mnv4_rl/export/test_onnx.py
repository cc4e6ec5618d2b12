"""ONNX files: the agent's own answers in ONNX Runtime, one whole file without traces, or no file at all."""

import json
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
import torch as th
from gymnasium import spaces
from sb3_contrib import QRDQN
from stable_baselines3 import DQN, PPO, SAC, TD3
from stable_baselines3.common.torch_layers import NatureCNN
from stable_baselines3.common.vec_env import VecNormalize

from mnv4_rl import save_agent
from mnv4_rl.export import OnnxAgent, onnx_agent, onnx_file, to_onnx
from tests.mnv4_rl.export.agents import ACTIONS, agent, batch_of, expected_scores, observations


@pytest.fixture(scope="module")
def ppo():
    return agent(PPO)


@pytest.fixture(scope="module")
def files(ppo, tmp_path_factory):
    """A file in float32, one in int8, and what was said of them."""
    folder = tmp_path_factory.mktemp("onnx")
    return {
        quantize: to_onnx(ppo, folder / f"{quantize}.onnx", quantize, notes={"game": "pong"})
        for quantize in (None, "fc")
    }


def answers(path, model, n=8):
    batch = observations(model, n)
    named = batch if isinstance(batch, dict) else {"observation": batch}
    scores, actions = onnx_file.session_of(path.read_bytes()).run(None, named)
    return scores, actions, expected_scores(model, batch_of(batch)).numpy(), model.predict(batch, deterministic=True)[0]


@pytest.mark.parametrize(("quantize", "tolerance"), [(None, 1e-5), ("fc", 0.03)])
@pytest.mark.parametrize("n", [1, 2, 9])
def test_answers_are_the_agents_for_any_batch(files, ppo, quantize, tolerance, n):
    scores, actions, expected, theirs = answers(files[quantize].path, ppo, n)
    largest = np.abs(expected).max()
    np.testing.assert_allclose(scores, expected, atol=tolerance * largest)
    clear = np.diff(np.sort(expected, 1)[:, -2:], axis=1)[:, 0] > 2 * tolerance * largest
    np.testing.assert_array_equal(actions[clear], theirs[clear])


def test_int8_takes_a_quarter_and_its_rows_do_not_disturb_each_other(files, ppo):
    n_weights = ppo.policy.features_extractor.network.head.fc.weight.numel()
    assert files[None].n_bytes - files["fc"].n_bytes == pytest.approx(3 * n_weights, abs=4_000)
    session = onnx_file.session_of(files["fc"].path.read_bytes())
    dim = observations(ppo, 2) // 8
    alone = session.run(None, {"observation": dim[:1]})[0]
    beside_noise = session.run(None, {"observation": np.concatenate([dim[:1], observations(ppo, 3)])})[0]
    np.testing.assert_allclose(beside_noise[:1], alone, rtol=1e-5, atol=1e-6)


def test_one_file_with_nothing_of_this_machine_in_it(files):
    for exported in files.values():
        model = onnx.load(exported.path, load_external_data=False)
        assert not any(tensor.external_data for tensor in model.graph.initializer)
        assert [p for p in exported.path.parent.iterdir() if p.suffix not in (".onnx",)] == []
        content = exported.path.read_bytes()
        assert not any(trace in content for trace in (b"site-packages", b".py", b"/mnv4_rl/", b"/home/", b"/tmp/"))


def test_what_it_says_of_itself(files):
    exported = files[None]
    assert exported.n_bytes == exported.path.stat().st_size
    assert exported.same_actions == exported.n_frames == 64 and exported.max_error < 1e-3
    for part in ("MB", "64 of 64", exported.path.name):
        assert part in str(exported)
    model = onnx.load(exported.path)
    assert [node.name for node in model.graph.input] == ["observation"]
    assert [node.name for node in model.graph.output] == ["logits", "action"]
    assert model.graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.UINT8
    assert json.loads(model.metadata_props[0].value)["game"] == "pong"


def test_a_file_keeps_the_rate_at_which_its_agent_explores():
    model, folded = onnx.ModelProto(), SimpleNamespace(scores="q_values", decide=None)
    onnx_file._describe(model, SimpleNamespace(exploration_rate=np.float64(0.25)), folded, {})
    assert json.loads(model.metadata_props[0].value)["exploration_rate"] == 0.25


def test_made_up_observations_leave_the_agents_own_draws_alone(ppo, tmp_path):
    space = ppo.policy.observation_space
    space.seed(3)
    expected = space.sample()
    space.seed(3)
    to_onnx(ppo, tmp_path / "agent.onnx")
    np.testing.assert_array_equal(space.sample(), expected)


def test_who_normalises_observations_outside_the_agent_is_told(ppo, monkeypatch, tmp_path):
    monkeypatch.setattr(ppo, "_vec_normalize_env", VecNormalize(ppo.env, norm_obs=True))
    with pytest.warns(UserWarning, match=r"does not hold its means and variances: .*env\.save"):
        save_agent(ppo, tmp_path / "agent")
    monkeypatch.setattr(onnx_file, "_convert", lambda *_: onnx.ModelProto())
    monkeypatch.setattr(onnx_file, "_compare", lambda *_: None)
    monkeypatch.setattr(onnx_file, "keep", lambda *_: None)
    with pytest.warns(UserWarning, match=r"VecNormalize has normalised, and .*agent\.onnx does not hold"):
        to_onnx(ppo, tmp_path / "agent.onnx")
    ppo._vec_normalize_env.norm_obs = False  # of rewards alone nothing is said
    save_agent(ppo, tmp_path / "agent")


@pytest.mark.parametrize("n", [1, 5])
def test_frames_of_play_are_what_is_compared(ppo, n, tmp_path):
    assert to_onnx(ppo, tmp_path / "agent.onnx", frames=observations(ppo, n)).n_frames == n
    played, _ = OnnxAgent(tmp_path / "agent.onnx").predict(observations(ppo, 3))
    assert played.shape == (3,)


def test_a_dict_of_one_frame_with_dots_in_its_keys(tmp_path):
    camera, state = spaces.Box(0, 255, (3, 36, 36), np.uint8), spaces.MultiDiscrete([2, 3])
    model = agent(PPO, space=spaces.Dict({"observation.image": camera, "observation.state": state}))
    path = to_onnx(model, tmp_path / "agent.onnx", frames=observations(model, 1)).path
    assert [part.name for part in onnx.load(path).graph.input] == ["observation.image", "observation.state"]
    theirs, _ = model.predict(observations(model, 4), deterministic=True)
    np.testing.assert_array_equal(OnnxAgent(path).predict(observations(model, 4), deterministic=True)[0], theirs)


def test_inputs_are_in_the_order_of_the_space(tmp_path):
    model = agent(PPO, with_vector=True)
    frames = {name: observations(model, 5)[name] for name in reversed(model.observation_space.spaces)}
    path = to_onnx(model, tmp_path / "agent.onnx", frames=frames).path
    assert [part.name for part in onnx.load(path).graph.input] == list(model.observation_space.spaces)


@pytest.mark.slow
@pytest.mark.parametrize("quantize", [None, "fc"])
@pytest.mark.parametrize(
    ("algorithm", "kwargs"),
    [
        (DQN, {}),
        (QRDQN, {}),
        (SAC, {}),
        (TD3, {}),
        (PPO, {"with_vector": True}),
        (SAC, {"with_vector": True}),
        (PPO, {"features_extractor_class": NatureCNN}),
        (PPO, {"space": spaces.Box(0, 1, (3, 40, 40), np.float32)}),
        (PPO, {"space": spaces.Box(0, 255, (4, 40, 40, 3), np.uint8)}),
        (PPO, {"shape": (3, 50, 41), "variant": "mnv4_conv_s"}),
        (PPO, {"shape": (3, 50, 41), "variant": "mnv4_hybrid_m"}),
        (PPO, {"shape": (3, 50, 41), "variant": "mobilenet_v4_nano"}),
        *((PPO, {"action": name}) for name in ACTIONS),
    ],
)
def test_every_algorithm_space_and_encoder(algorithm, kwargs, quantize, tmp_path):
    model = agent(algorithm, **kwargs)
    path = to_onnx(model, tmp_path / "agent.onnx", quantize).path
    scores, actions, expected, theirs = answers(path, model)
    tolerance = 1e-4 if quantize is None else 0.05
    np.testing.assert_allclose(scores, expected, atol=tolerance * max(1, np.abs(expected).max()))
    assert actions.shape == theirs.shape
    batch = observations(model, 4)
    played, _ = OnnxAgent(path).predict(batch, deterministic=True)
    np.testing.assert_allclose(played, actions[:4], rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["rl_s", "rl_m", "rl_m2"])
def test_whole_maps_are_never_averaged_by_an_unknown_operator(variant, tmp_path):
    """Maps larger than the grid, of sizes it does not divide."""
    to_onnx(agent(PPO, shape=(4, 120, 160), variant=variant), tmp_path / "agent.onnx")


class TestOnnxAgent:
    def test_sampled_actions_are_those_of_the_agent_with_the_same_seed(self, files, ppo):
        batch, player = observations(ppo, 32), OnnxAgent(files[None].path)
        for deterministic in (False, True):
            th.manual_seed(5)
            mine, _ = player.predict(batch, deterministic=deterministic)
            th.manual_seed(5)
            theirs, _ = ppo.predict(batch, deterministic=deterministic)
            np.testing.assert_array_equal(mine, theirs)

    @pytest.mark.parametrize("action", ["multi", "binary"])
    def test_each_part_of_an_action_is_drawn_as_the_agents(self, action, tmp_path):
        model = agent(PPO, action=action)
        batch, player = observations(model, 16), OnnxAgent(to_onnx(model, tmp_path / "agent.onnx").path)
        assert player.action_space == model.action_space
        draws = {True: [], False: []}
        for deterministic in (True, False):
            for seed in range(8):
                th.manual_seed(seed)
                mine, _ = player.predict(batch, deterministic=deterministic)
                th.manual_seed(seed)
                theirs, _ = model.predict(batch, deterministic=deterministic)
                np.testing.assert_array_equal(mine, theirs)
                draws[deterministic].append(mine)
        assert (np.ptp(draws[False], axis=0) > 0).any() and not np.ptp(draws[True], axis=0).any()

    def test_a_file_of_dqn_explores_as_often_as_the_agent_did(self, files, ppo):
        """It draws from numpy for all at once, and then from the space, as SB3's DQN does."""
        batch, player = observations(ppo, 4), OnnxAgent(files[None].path)
        greedy, _ = player.predict(batch, deterministic=True)
        for rate in (0.0, 0.5, 1.0):
            player.notes = {"scores": "q_values", "exploration_rate": rate}
            np.random.seed(0)
            explored = sum((player.predict(batch)[0] != greedy).any() for _ in range(40))
            assert explored == pytest.approx(40 * rate, abs=8 * (rate == 0.5) + 2 * (rate == 1))

    def test_a_file_plays_on_the_threads_it_is_given(self, files, monkeypatch):
        asked, session_of = [], onnx_file.session_of
        monkeypatch.setattr(onnx_agent, "session_of", lambda *args: asked.append(args[1:]) or session_of(*args))
        OnnxAgent(files[None].path, threads=2)
        assert asked == [(2,)]

    def test_a_single_observation(self, files, ppo):
        single = observations(ppo, 1)[0]
        mine, theirs = (player.predict(single, deterministic=True)[0] for player in (OnnxAgent(files[None].path), ppo))
        assert mine.shape == theirs.shape and mine == theirs

    def test_knows_what_it_is(self, files):
        player = OnnxAgent(files[None].path)
        assert player.notes == {"algorithm": "PPO", "scores": "logits", "game": "pong"}
        assert player.action_space == spaces.Discrete(5)

    @pytest.mark.parametrize("dtype", [np.int64, np.float64, np.float32])
    def test_a_picture_of_another_type_is_taken_as_sb3_takes_it(self, files, ppo, dtype):
        batch, player = observations(ppo, 8), OnnxAgent(files[None].path)
        mine, theirs = (agent.predict(batch.astype(dtype), deterministic=True)[0] for agent in (player, ppo))
        np.testing.assert_array_equal(mine, theirs)

    @pytest.mark.parametrize("number", [256, -1, 0.5, np.nan])
    def test_numbers_that_no_picture_has_are_refused(self, files, number):
        with pytest.raises(ValueError, match="takes observation as uint8, got float64"):
            OnnxAgent(files[None].path).predict(np.full((4, 36, 36), number, np.float64))

    def test_vectors_in_double_and_actions_of_a_shape_are_sb3s(self, tmp_path):
        model = agent(PPO, with_vector=True, action="matrix")
        player = OnnxAgent(to_onnx(model, tmp_path / "agent.onnx").path)
        assert player.action_space.shape == (2, 3)
        batch = observations(model, 4)
        batch |= {"joints": batch["joints"].astype(np.float64), "switches": batch["switches"].astype(np.float64)}
        for given in (batch, {key: value[0] for key, value in batch.items()}):
            mine, theirs = (one.predict(given, deterministic=True)[0] for one in (player, model))
            assert mine.shape == theirs.shape
            np.testing.assert_allclose(mine, theirs, rtol=1e-4, atol=1e-5)

    @pytest.mark.parametrize("shape", [(4, 36, 37), (36, 36), (2, 4, 35, 36)])
    def test_other_observations_are_refused(self, files, shape):
        with pytest.raises(ValueError, match="36"):
            OnnxAgent(files[None].path).predict(np.zeros(shape, np.uint8))

    @pytest.mark.parametrize("content", [b"", b"no model", None])
    def test_other_files_are_refused(self, tmp_path, content):
        path = tmp_path / "agent.onnx"
        if content is None:
            node = onnx.helper.make_node("Identity", ["x"], ["y"])
            ends = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1]) for name in "xy"]
            graph = onnx.helper.make_graph([node], "g", ends[:1], ends[1:])
            model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=10)
            content = model.SerializeToString()
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"agent\.onnx"):
            OnnxAgent(path)
        with pytest.raises(FileNotFoundError, match="nowhere"):
            OnnxAgent(tmp_path / "nowhere.onnx")


class TestRefused:
    def test_a_path_that_exists_stays_as_it_is(self, ppo, tmp_path):
        path = tmp_path / "agent.onnx"
        path.write_text("precious")
        with pytest.raises(FileExistsError, match="exists"):
            to_onnx(ppo, path)
        assert path.read_text() == "precious"

    @pytest.mark.parametrize("quantize", ["int8", "full", "all", True, 8])
    def test_full_int8_with_the_reason(self, ppo, tmp_path, quantize):
        with pytest.raises(ValueError, match="Breakout"):
            to_onnx(ppo, tmp_path / "agent.onnx", quantize)

    @pytest.mark.parametrize("name", ["algorithm", "scores", "exploration_rate"])
    def test_notes_that_the_file_plays_by(self, ppo, tmp_path, name):
        with pytest.raises(ValueError, match=f"notes cannot have {name}"):
            to_onnx(ppo, tmp_path / "agent.onnx", notes={"game": "pong", name: "mine"})
        assert list(tmp_path.iterdir()) == []

    def test_another_ending(self, ppo, tmp_path):
        with pytest.raises(ValueError, match=r"\.onnx"):
            to_onnx(ppo, tmp_path / "agent.pt")

    @pytest.mark.parametrize(
        "frames", [np.zeros((2, 4, 36, 36), np.float32), np.zeros((2, 36, 36, 4), np.uint8), {"camera": np.zeros(1)}]
    )
    def test_frames_of_another_kind(self, ppo, tmp_path, frames):
        with pytest.raises(ValueError, match="frames"):
            to_onnx(ppo, tmp_path / "agent.onnx", frames=frames)

    def test_a_file_that_answers_otherwise_is_not_written(self, ppo, tmp_path, monkeypatch):
        def spoil(model):
            weight = onnx.numpy_helper.to_array(model.graph.initializer[0]) + 1
            model.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(weight, model.graph.initializer[0].name))

        monkeypatch.setattr(onnx_file, "quantize_largest_layer", spoil)
        with pytest.raises(ValueError, match="nothing is written"):
            to_onnx(ppo, tmp_path / "agent.onnx", "fc")
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize("action", ACTIONS)
    def test_an_agent_that_does_not_do_as_its_layers_say(self, tmp_path, action):
        model = agent(PPO, action=action)
        predict = model.policy._predict
        other = (lambda actions: (actions + 1) % 5) if action == "discrete" else (lambda actions: actions.flip(0))
        model.policy._predict = lambda *args, **kwargs: other(predict(*args, **kwargs))
        with pytest.raises(ValueError, match=r"In \d+ of 64 observations the agent does what its layers do not say"):
            to_onnx(model, tmp_path / "agent.onnx")
        assert list(tmp_path.iterdir()) == []

    def test_without_onnx_there_is_an_install_line(self, ppo, tmp_path, monkeypatch):
        monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
        with pytest.raises(ModuleNotFoundError, match="pip install"):
            to_onnx(ppo, tmp_path / "agent.onnx")
