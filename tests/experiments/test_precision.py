"""The opt-in ways to compute: bf16 for the encoder alone, a compiled encoder, and fp32 untouched without them."""

import warnings

import numpy as np
import pytest
import torch as th
from torch import nn

from experiments import atari_ppo
from mnv4_rl.performance import compile_encoders, set_precision
from tests.tiny_env import ActionsAsImage, tiny_ppo

RUN = ["--total-timesteps", "16", "--n-envs", "2", "--ppo.n-steps", "8", "--ppo.batch-size", "8", "--threads", "1"]
RUN += ["--evaluation-games", "0", "--device", "cpu"]


def pictures(n=16):
    rng = np.random.default_rng(0)
    return th.as_tensor(rng.integers(0, 256, (n, *ActionsAsImage.observation_space.shape), dtype=np.uint8))


def features(model):
    with th.no_grad():
        return model.policy.extract_features(pictures())


@pytest.mark.parametrize("encoder", ["rl_s", "nature"])
def test_bf16_rounds_the_features_and_leaves_weights_and_losses_in_fp32(encoder):
    model = tiny_ppo(encoder=encoder)
    exact = features(model)
    set_precision(model.policy, "bf16")
    rounded = features(model)
    assert rounded.dtype == th.float32
    assert not th.equal(rounded, exact)
    th.testing.assert_close(rounded, exact, rtol=0.1, atol=0.1)
    model.learn(16)
    assert {parameter.dtype for parameter in model.policy.parameters()} == {th.float32}
    set_precision(model.policy, "fp32")
    assert features(model).dtype == th.float32
    assert not th.equal(features(model), exact)  # it has learned


@pytest.mark.parametrize(
    ("found", "warned"),
    [
        ({"architecture": "x86_64", "avx512_bf16": False, "amx_bf16": False}, True),
        ({"architecture": "x86_64", "avx512_bf16": True, "amx_bf16": False}, False),
        ({"architecture": "x86_64", "avx512_bf16": False, "amx_bf16": True}, False),
        ({"architecture": "aarch64"}, False),
        ({}, False),
    ],
)
def test_bf16_warns_where_the_processor_has_no_units_for_it(monkeypatch, found, warned):
    monkeypatch.setattr(th.cpu, "get_capabilities", lambda: found, raising=False)
    policy = tiny_ppo(encoder="rl_s").policy
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        set_precision(policy, "fp32")
        assert not seen
        set_precision(policy, "bf16")
    assert ["bf16 is several times slower here than fp32" in str(warning.message) for warning in seen] == [
        True
    ] * warned


def test_fp32_is_what_it_was():
    model = tiny_ppo(encoder="rl_s")
    before = features(model)
    set_precision(model.policy, "fp32")
    assert th.equal(features(model), before)


def test_wrong_precision_or_policy_is_told():
    policy = tiny_ppo().policy
    with pytest.raises(ValueError, match="precision must be one of fp32, bf16, got 'fp8'"):
        set_precision(policy, "fp8")
    with pytest.raises(ValueError, match=r"Linear computes in fp32; for bf16 build it with a policy of mnv4_rl"):
        set_precision(nn.Linear(1, 1), "bf16")


def test_an_encoder_that_cannot_be_compiled_stays_as_it_is(monkeypatch):
    def broken(*_args):
        raise RuntimeError("no compiler here")

    monkeypatch.setattr(nn.Module, "compile", lambda self, **_: setattr(self, "_compiled_call_impl", broken))
    model = tiny_ppo(encoder="rl_s")
    before = features(model)
    with pytest.warns(RuntimeWarning, match="MNV4Extractor is not compiled: no compiler here"):
        assert compile_encoders(model.policy) == 0
    assert th.equal(features(model), before)


@pytest.mark.parametrize(("encoder", "dtype"), [("rl_s", th.uint8), ("impala", th.float32)])
def test_an_encoder_is_tried_on_what_its_network_gets(monkeypatch, encoder, dtype):
    seen = []
    compiled = {"_compiled_call_impl": lambda images: seen.append(images.dtype)}
    monkeypatch.setattr(nn.Module, "compile", lambda self, **_: vars(self).update(compiled))
    assert compile_encoders(tiny_ppo(encoder=encoder).policy) == 1
    assert seen == [dtype]


@pytest.mark.slow
def test_compiled_encoder_gives_the_same_features_under_the_same_names():
    model = tiny_ppo(encoder="rl_s")
    before, names = features(model), list(model.policy.state_dict())
    assert compile_encoders(model.policy) == 1
    th.testing.assert_close(features(model), before, rtol=1e-4, atol=1e-5)
    assert list(model.policy.state_dict()) == names
    model.learn(16)


def test_commands_take_the_precision_and_record_it(tmp_path):
    atari_ppo.main([*RUN, "--precision", "bf16", "--run-dir", str(tmp_path / "run")])
    assert "precision: bf16" in (tmp_path / "run" / "config.yml").read_text()
    assert (tmp_path / "run" / "model.zip").exists()
