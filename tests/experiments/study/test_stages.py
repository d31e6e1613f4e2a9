"""Which runs there are, by what the runs before came to."""

import dataclasses

import jax
import numpy as np
import pytest
from study_worker import NUM_RUNS, PROTOCOL, SETTING, record_of

from experiments.data.load import load_data
from experiments.errors import ConfigMismatchError, ExperimentError
from experiments.study.protocol import PLAIN
from experiments.study.protocol import PROTOCOL as REAL
from experiments.study.stages import (
    STAGES,
    choose_finalists,
    choose_plain,
    plain_finalist,
    plan_stage,
    plan_study,
    time_ratio,
)
from experiments.training.loop import build_experiment


def changed(records, select, **figures):
    """Give the records of some runs other figures."""
    return {
        key: record._replace(figures=record.figures | figures) if select(record) else record
        for key, record in records.items()
    }


def diverged(records, select):
    return {
        key: record._replace(diverged=True, figures={}) if select(record) else record
        for key, record in records.items()
    }


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_is_planned_when_those_before_are_complete(records_up_to, stage):
    records = records_up_to(stage)
    plans = plan_study(PROTOCOL, records)
    assert [plan.stage for plan in plans] == list(STAGES[: STAGES.index(stage) + 1])
    assert len(plans[-1].runs) == NUM_RUNS[stage]
    assert len({run.key for plan in plans for run in plan.runs}) == len(records) + NUM_RUNS[stage]
    assert plans[-1].missing(records) == list(plans[-1].runs)
    first = plans[-1].runs[0]
    assert plan_study(PROTOCOL, records | {first.key: record_of(first)}) == plans


def test_plain_training_is_chosen_by_the_mean_on_validation(records_up_to):
    records = records_up_to("strengths")
    assert choose_plain(PROTOCOL, SETTING, records)["optimizer.learning_rate"] == 0.1
    for rate, loss in ((0.05, 0.99), (0.1, 0.5)):
        better = changed(
            records,
            lambda record, rate=rate: record.values["optimizer.learning_rate"] == rate,
            validation_accuracy=loss,
        )
    assert choose_plain(PROTOCOL, SETTING, better)["optimizer.learning_rate"] == 0.05


def test_of_perplexities_the_lowest_is_chosen(records_up_to):
    setting = dataclasses.replace(SETTING, selected_by="validation_perplexity")
    records = {
        key: record._replace(
            figures=record.figures
            | {"validation_perplexity": 1000 * record.values["optimizer.learning_rate"]}
        )
        for key, record in records_up_to("strengths").items()
    }
    assert choose_plain(PROTOCOL, setting, records)["optimizer.learning_rate"] == 0.05


def test_a_point_at_which_one_run_diverged_is_not_chosen(records_up_to):
    records = diverged(
        records_up_to("strengths"),
        lambda record: record.values["optimizer.learning_rate"] == 0.1 and record.seed == 101,
    )
    assert choose_plain(PROTOCOL, SETTING, records)["optimizer.learning_rate"] == 0.05
    with pytest.raises(ExperimentError, match="plain training diverged at every point"):
        choose_plain(PROTOCOL, SETTING, diverged(records, lambda record: True))


def test_methods_are_tuned_with_plain_trainings_settings(records_up_to):
    plan = plan_stage(PROTOCOL, SETTING, "strengths", records_up_to("strengths"))
    assert {run.config.optimizer.learning_rate for run in plan.runs} == {0.1}
    strengths = {(run.method, run.config.method, run.config.seed) for run in plan.runs}
    assert len(strengths) == NUM_RUNS["strengths"]
    assert {seed for *_, seed in strengths} == {100, 101}


def test_finalists_are_plain_the_rival_the_recommended_form_and_one_of_each_group(records_up_to):
    records = changed(
        records_up_to("finalists"),
        lambda record: record.method == "Label smoothing",
        validation_accuracy=0.999,
    )
    labels = [each.label for each in choose_finalists(PROTOCOL, SETTING, records)]
    assert labels == [PLAIN, "SAM", "Gauss-Newton SEHT-H", "SEHT-H"]
    both = dataclasses.replace(PROTOCOL, groups=(("SEHT-H", "Label smoothing"), ("SAM",)))
    labels = [each.label for each in choose_finalists(both, SETTING, records)]
    assert labels == [PLAIN, "SAM", "Gauss-Newton SEHT-H", "Label smoothing"]


def test_the_best_of_the_others_are_finalists(records_up_to):
    more = dataclasses.replace(PROTOCOL, num_others=1)
    labels = [each.label for each in choose_finalists(more, SETTING, records_up_to("finalists"))]
    assert labels == [PLAIN, "SAM", "Gauss-Newton SEHT-H", "SEHT-H", "Label smoothing"]


def test_finalists_have_the_strength_that_did_best(records_up_to):
    records = changed(
        records_up_to("finalists"),
        lambda record: record.values.get("sam.rho") == 0.05,
        validation_accuracy=0.999,
    )
    finalists = {each.label: each for each in choose_finalists(PROTOCOL, SETTING, records)}
    assert finalists["SAM"].values["sam.rho"] == 0.05
    plan = plan_stage(PROTOCOL, SETTING, "finalists", records)
    sam = {run.config for run in plan.runs if run.method == "SAM"}
    assert {config.method[0].rho for config in sam} == {0.05}
    assert {config.seed for config in sam} == {0, 1, 2}


def test_a_method_that_diverged_everywhere_is_no_finalist(records_up_to):
    records = diverged(
        records_up_to("finalists"), lambda record: record.method in {"SAM", "SEHT-H"}
    )
    labels = [each.label for each in choose_finalists(PROTOCOL, SETTING, records)]
    assert labels == [PLAIN, "Gauss-Newton SEHT-H"]


def test_the_time_of_a_method_is_that_of_the_stage_times(records_up_to):
    records = records_up_to("equal-time")
    assert time_ratio(SETTING, "SAM", records) == (2, 1.9, 2.1)
    assert time_ratio(SETTING, PLAIN, records) == (1, 1, 1)
    assert time_ratio(SETTING, "SAM", records_up_to("times")) is None


def test_steps_are_timed_at_the_settings_and_a_seed_at_which_no_run_diverged(records_up_to):
    records = records_up_to("times")
    plan = plan_stage(PROTOCOL, SETTING, "times", records)
    assert [run.method for run in plan.runs] == ["SAM", "Gauss-Newton SEHT-H", "SEHT-H"]
    assert {run.config.seed for run in plan.runs} == {100}
    plain = plain_finalist(PROTOCOL, SETTING, records)
    for run in plan.runs:
        assert run.config.method == run.config.method[:1]
        assert dataclasses.replace(run.config, method=()) == plain


@pytest.mark.parametrize(("factor", "epochs"), [(2.0, 2), (1.4, 3), (1.05, None), (0.9, None)])
def test_dearer_methods_have_as_many_epochs_as_take_plain_trainings_time(
    records_up_to, factor, epochs
):
    records = changed(
        records_up_to("equal-time"),
        lambda record: record.method == "SAM" and record.stage == "times",
        step_time_ratio=factor,
    )
    plan = plan_stage(PROTOCOL, SETTING, "equal-time", records)
    assert {run.config.epochs for run in plan.runs if run.method == "SAM"} == (
        set() if epochs is None else {epochs}
    )
    assert PLAIN not in {run.method for run in plan.runs}


def test_a_method_of_which_not_one_epoch_takes_that_time_is_an_error(records_up_to):
    records = changed(
        records_up_to("equal-time"),
        lambda record: record.method == "SAM" and record.stage == "times",
        step_time_ratio=10.0,
    )
    with pytest.raises(ExperimentError, match="SAM in 'digits' takes 10 times"):
        plan_stage(PROTOCOL, SETTING, "equal-time", records)


@pytest.mark.parametrize(("factor", "epochs"), [(2.0, 8), (1.4, 6), (1.05, None), (0.9, None)])
def test_plain_training_lasts_as_long_as_the_recommended_form(records_up_to, factor, epochs):
    records = changed(
        records_up_to("longer"),
        lambda record: record.method == "Gauss-Newton SEHT-H" and record.stage == "times",
        step_time_ratio=factor,
    )
    plan = plan_stage(PROTOCOL, SETTING, "longer", records)
    wanted = [] if epochs is None else [epochs] * 3
    assert [run.config.epochs for run in plan.runs] == wanted
    assert {run.method for run in plan.runs} <= {PLAIN}
    assert all(run.config.method == SETTING.base.method for run in plan.runs)


def test_where_the_recommended_form_always_diverged_nothing_lasts_as_long(records_up_to):
    records = diverged(
        records_up_to("longer"), lambda record: record.method == "Gauss-Newton SEHT-H"
    )
    assert not plan_stage(PROTOCOL, SETTING, "longer", records).runs


def test_conditions_change_the_finalists(records_up_to):
    plan = plan_stage(PROTOCOL, SETTING, "conditions", records_up_to("conditions"))
    assert {run.method for run in plan.runs} == {PLAIN, "SAM", "Gauss-Newton SEHT-H"}
    assert {run.config.data.label_noise for run in plan.runs} == {0.2}
    assert {run.condition for run in plan.runs} == {"label noise 20 %"}
    assert {run.config.optimizer.learning_rate for run in plan.runs} == {0.1}


def test_a_record_with_other_settings_than_planned_is_refused(records_up_to):
    records = records_up_to("strengths")
    key, record = next(iter(records.items()))
    other = record._replace(settings=record.settings | {"epochs": 7})
    with pytest.raises(ConfigMismatchError, match="epochs: 7 there, 4 planned"):
        plan_study(PROTOCOL, records | {key: other})


def test_a_record_of_an_earlier_version_lacks_a_setting(records_up_to):
    records = records_up_to("strengths")
    key, record = next(iter(records.items()))
    settings = dict(record.settings)
    del settings["data.label_noise"]
    plan_study(PROTOCOL, records | {key: record._replace(settings=settings)})


def test_runs_of_one_seed_start_alike_and_see_the_same_images(records_up_to):
    plan = plan_stage(PROTOCOL, SETTING, "finalists", records_up_to("finalists"))
    data = load_data(SETTING.base.data)
    begun = []
    for run in (run for run in plan.runs if run.config.seed == 1):
        experiment = build_experiment(run.config, data)
        state = experiment.init(1)
        orders = [experiment.task.epoch_order(state.key, epoch) for epoch in (0, 3)]
        batch = experiment.task.batch(data.train, orders[0], state.step, jax.random.key(2))
        begun.append([*jax.tree.leaves((state.params, orders, batch)), state.key])
    assert len(begun) == 4
    for other in begun[1:]:
        for expected, found in zip(begun[0], other, strict=True):
            if jax.dtypes.issubdtype(expected.dtype, jax.dtypes.prng_key):
                assert jax.random.key_data(expected).tolist() == jax.random.key_data(found).tolist()
            else:
                np.testing.assert_array_equal(expected, found)


def test_no_seed_serves_tuning_and_test():
    with pytest.raises(ValueError, match=r"share \[1\]"):
        dataclasses.replace(PROTOCOL, tuning_seeds=(1, 100))


@pytest.mark.parametrize("setting", REAL.settings, ids=lambda setting: setting.name)
def test_the_real_protocol_is_planned_to_its_end(setting):
    """With made-up records: that every point of it is a configuration."""
    records = {}
    for stage in STAGES:
        plan = plan_stage(REAL, setting, stage, records)
        for run in plan.runs:
            assert run.config.trace_examples == 0
            record = record_of(run)
            figures = {"validation_perplexity": 100.0, **record.figures}
            records[run.key] = record._replace(figures=figures)
    finalists = {record.method for record in records.values() if record.stage == "finalists"}
    assert {PLAIN, REAL.rival, REAL.recommended} < finalists
    assert {label for labels in REAL.groups for label in labels} < {
        method.label for method in setting.methods
    }
    for labels in REAL.groups:
        assert finalists & set(labels)
    assert len(finalists) == 3 + len(REAL.groups) + REAL.num_others
