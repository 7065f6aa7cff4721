"""Which policy a name gives, what steps in for one that cannot be used, and what is refused at the start."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from policy_cases import small_table, untrained_file

from streamsplit.errors import CutError
from streamsplit.splitting.bandit import BanditPolicy
from streamsplit.splitting.constraints import ConstraintSettings
from streamsplit.splitting.correction import CorrectedPolicy
from streamsplit.splitting.cut import AUDIO_ENCODINGS, Cut
from streamsplit.splitting.decision import Experience, Policy
from streamsplit.splitting.greedy import GreedySettings
from streamsplit.splitting.heuristic import HeuristicPolicy
from streamsplit.splitting.observation import Observation
from streamsplit.splitting.policy import (
    LEARNED_POLICIES,
    POLICIES,
    PolicySettings,
    fallbacks_of,
    learner_of,
    make_policy,
    usable_policy,
)

RISKS = {"0:pcm16": 1.0, "0:opus24": 0.9, "0:logmel-int8": 0.8, "2:fp16": 0.5, "2:int8": 0.5, "3:int8": 0.3,
         "4:embedding-fp16": 0.1, "4:embedding-int8": 0.1}  # fmt: skip
TABLE = small_table(privacy_risk=RISKS)
FILE = untrained_file(TABLE.cuts)
SEEN = Observation(uncertainty=2.0, cpu=0.2, bandwidth_bps=4e6, bandwidth_age_ms=100.0, rtt_ms=40.0, rtt_age_ms=100.0)
STATES = [
    SEEN._replace(cpu=cpu, bandwidth_bps=bps, power_mw=power, last_cut=last, link_up=up)
    for cpu in (0.0, 0.9) for bps in (1e4, 1e6, 1e8) for power in (0.0, 60.0, 1e3)
    for last in (None, Cut.parse("0:pcm16"), Cut.parse("4:none")) for up in (True, False)
]  # fmt: skip


def made(name: str, **changes) -> Policy:
    cut = "0:logmel-int8" if name == "fixed" else ""
    policy, problem = usable_policy(PolicySettings(name=name, cut=cut, **changes), TABLE, FILE)
    assert problem == ""
    return policy


@pytest.mark.parametrize("name", POLICIES)
def test_every_name_is_a_policy_that_answers_with_a_row(name):
    policy = made(name)
    assert isinstance(policy, Policy)
    for observation in STATES:
        decision = policy.decide(observation, TABLE)
        assert decision.cut in TABLE.cuts and decision.reason and 0.0 <= decision.confidence <= 1.0


@pytest.mark.parametrize("name", [name for name in POLICIES if name not in ("fixed", "keep-local")])
def test_no_policy_takes_what_the_constraints_forbid(name):
    private = made(name, constraints=ConstraintSettings(raw_audio=False, max_privacy_risk=0.6))
    thrifty = made(name, constraints=ConstraintSettings(energy_budget_mw=40.0, energy_window_s=1.0))
    for observation in STATES:
        row = TABLE.row(private.decide(observation, TABLE).cut)
        assert row.cut.encoding not in AUDIO_ENCODINGS and not row.privacy_risk > 0.6
        row = TABLE.row(thrifty.decide(observation, TABLE).cut)
        settings = ConstraintSettings(energy_budget_mw=40.0, energy_window_s=1.0)
        free = max(1.0 - observation.cpu, 0.05)
        least = min(row.energy_mj for row in TABLE.rows)
        assert row.energy_mj / free <= settings.allowance_mj(observation.power_mw) or row.energy_mj == least


def test_a_fixed_cut_that_is_forbidden_is_one_clear_error_at_the_start():
    settings = PolicySettings(name="fixed", cut="0:pcm16", constraints=ConstraintSettings(raw_audio=False))
    with pytest.raises(CutError, match=r"fixed cut 0:pcm16 .*forbidden.*raw_audio=False"):
        usable_policy(settings, TABLE)
    with pytest.raises(CutError, match=r"privacy risk 0\.8.*max_privacy_risk=0\.6"):
        usable_policy(
            PolicySettings(name="fixed", cut="0:logmel-int8", constraints=ConstraintSettings(max_privacy_risk=0.6)),
            TABLE,
        )
    with pytest.raises(CutError, match="7:int8"):
        usable_policy(PolicySettings(name="fixed", cut="7:int8"), TABLE)


def test_constraints_that_leave_nothing_are_an_error_at_the_start_for_any_policy():
    audio = TABLE.only([Cut.parse("0:pcm16"), Cut.parse("0:opus24")])
    for name in ("greedy", "ppo", "bandit"):
        with pytest.raises(CutError, match="no cut of the table"):
            usable_policy(PolicySettings(name=name, constraints=ConstraintSettings(raw_audio=False)), audio, FILE)


def test_a_fixed_cut_over_the_energy_budget_gives_way_to_the_thriftiest_and_counts_as_a_fallback():
    constraints = ConstraintSettings(energy_budget_mw=20.0, energy_window_s=10.0)
    policy, _ = usable_policy(PolicySettings(name="fixed", cut="4:embedding-fp16", constraints=constraints), TABLE)
    assert policy.decide(SEEN, TABLE).cut == Cut.parse("4:embedding-fp16")
    spent = policy.decide(SEEN._replace(power_mw=19.5), TABLE)
    assert TABLE.row(spent.cut).energy_mj < 30.0 and "in place of the policy" in spent.reason
    assert fallbacks_of(policy) == 1


@pytest.mark.parametrize("name", LEARNED_POLICIES)
def test_without_a_usable_file_the_heuristic_decides_and_says_why(name, tmp_path: Path):
    damaged = tmp_path / "damaged.npz"
    damaged.write_bytes(FILE.to_bytes()[:200])
    other = tmp_path / "other.npz"
    FILE._replace(encoder="resnet18").save(other)
    cases = {
        str(tmp_path / "missing.npz"): "cannot be read",
        str(damaged): "not a policy file",
        str(other): "another cut table",
    }
    for path, why in cases.items():
        policy, problem = usable_policy(PolicySettings(name=name, policy_file=path), TABLE)
        assert re.search(f"policy '{name}' is not usable, the heuristic decides: .*{why}", problem)
        for count, observation in enumerate(STATES, 1):
            decision = policy.decide(observation, TABLE)
            assert decision.cut == HeuristicPolicy().decide(observation, TABLE).cut
            assert f"'{name}' is not usable" in decision.reason and fallbacks_of(policy) == count
        with pytest.raises(CutError, match=why):
            usable_policy(PolicySettings(name=name, policy_file=path), TABLE, strict=True)
    policy, problem = usable_policy(PolicySettings(name=name, encoder="nothing"), TABLE)
    assert "no trained policy ships for encoder 'nothing'" in problem


def test_a_file_by_name_is_read_and_the_stride_is_the_devices(tmp_path: Path):
    path = tmp_path / "policy.npz"
    FILE.save(path)
    settings = PolicySettings(name="ppo", policy_file=str(path), greedy=GreedySettings(interval_ms=250.0))
    policy = make_policy(settings)
    assert policy.policy.file.settings.interval_ms == 250.0
    assert policy.policy.file.settings.replace(interval_ms=500.0) == FILE.settings
    assert policy.decide(SEEN, TABLE).reason.startswith("learned policy v1")


@pytest.mark.parametrize("name", [name for name in POLICIES if name not in LEARNED_POLICIES])
def test_a_policy_file_changes_nothing_for_policies_that_use_none(name):
    settings = PolicySettings(name=name, cut="2:int8")
    for observation in STATES:
        decisions = [
            policy.decide(observation, TABLE) for policy in (make_policy(settings), make_policy(settings, FILE))
        ]
        assert decisions[0] == decisions[1]


def test_where_none_of_the_policys_cuts_may_be_taken_the_greedy_one_decides_and_it_counts():
    settings = PolicySettings(name="ppo")
    policy, _ = usable_policy(settings, TABLE, untrained_file(TABLE.cuts[1:]))
    assert policy.decide(SEEN, TABLE).cut in TABLE.cuts[1:] and fallbacks_of(policy) == 0
    assert policy.decide(SEEN, TABLE.only(TABLE.cuts[:1])).cut == TABLE.cuts[0] and fallbacks_of(policy) == 1


def test_what_learns_is_found_inside_its_wrappers():
    held = ConstraintSettings(raw_audio=False)
    assert isinstance(learner_of(made("bandit", constraints=held)), BanditPolicy)
    assert isinstance(learner_of(made("ppo-corrected", constraints=held)), CorrectedPolicy)
    bandit = made("bandit", constraints=held, cuts=tuple(map(str, TABLE.cuts)))
    bandit.decide(SEEN, TABLE)
    bandit.learn(Experience(SEEN, Cut.parse("4:embedding-fp16"), 90.0, 60.0))  # wrapped three times
    assert learner_of(bandit)._model.samples == 1
    for name in ("greedy", "heuristic", "argmin", "ppo", "fixed", "keep-local"):
        assert learner_of(made(name, constraints=held)) is None


def test_a_bandit_made_by_name_learns_that_the_link_is_slow():
    policy = made("bandit")
    learner = learner_of(policy)
    for _ in range(200):
        decision = policy.decide(SEEN, TABLE)
        row = TABLE.row(decision.cut)
        late = 5.0 * row.payload_bytes if row.cut.sends else float("nan")  # 5 ms a byte: nothing can cross
        learner.learn(Experience(SEEN, decision.cut, row.edge_ms + 1_000.0, late))
    chosen = [policy.decide(SEEN, TABLE).cut for _ in range(20)]
    assert max(TABLE.row(cut).payload_bytes for cut in chosen) < 300


def test_the_heuristic_takes_the_nearest_row_there_is():
    some = TABLE.only([Cut.parse("0:opus24"), Cut.parse("3:int8"), Cut.parse("4:none")])
    assert HeuristicPolicy().decide(SEEN._replace(cpu=1.0, bandwidth_bps=1e5), some).cut == Cut.parse("3:int8")
    front = TABLE.only([Cut.parse("0:opus24"), Cut.parse("0:pcm16")])
    assert HeuristicPolicy().decide(SEEN, front).cut == Cut.parse("0:opus24")
