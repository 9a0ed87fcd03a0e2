"""Table 1 trains the methods as published or from a common start, and leaves out rows without weights or data."""

import pytest
from absl import flags
from ml_collections import config_flags
from people import ROOT

from nrsrd_jax import ablation, ablation_tables
from nrsrd_jax.ablation import Training, default_workdir, run_ablation, train_command
from nrsrd_jax.build import check_model
from nrsrd_jax.config import flatten, save_config
from nrsrd_jax.data.readers import LAYOUTS
from nrsrd_jax.errors import InputError
from nrsrd_jax.metrics_log import TITLES
from nrsrd_jax.options import read_options
from nrsrd_jax.rows import TABLES, parse_row, row_config, variant_config

pytestmark = pytest.mark.slow

COSTS = ["bot_resnet_tiny", "random", "0.6", "0.04", "0.1"]
NIGHT = str(ROOT / "configs/night600.py")


@pytest.fixture
def untrained(monkeypatch):
    """Give each row scores of 25 % and costs, without training."""
    monkeypatch.setattr(ablation, "train", lambda *_, **__: dict.fromkeys(TITLES, 0.25))
    monkeypatch.setattr(ablation_tables.costs, "costs", lambda run: COSTS)


def rows_of(*names):
    """Return these rows of table 1."""
    return tuple(row for row in TABLES["1"] if row.name in names)


def test_table_1_trains_each_method_as_published_or_with_the_common_recipe(ablation_file):
    night = str(ROOT / "configs/night600.py")
    bot, transreid = rows_of("bot", "transreid")
    overrides = {"init.checkpoint": "weights/{backbone}"}
    published = row_config(night, bot, 0, overrides)
    assert (published.optim.name, published.optim.milestones, published.train.epochs) == ("adam", (40, 70), 120)
    assert (published.model.backbone, published.init.checkpoint) == ("bot_resnet50", "weights/resnet50")
    alone = row_config(night, bot, 2, overrides, same_start=True)
    assert (alone.optim.name, alone.loss.center_real, alone.train.seed) == ("sgd", 0.0005, 2)
    assert row_config(night, transreid, 0, overrides).init.checkpoint == "weights/vit_base"
    small = row_config(ablation_file, bot, 0, {"init.checkpoint": "vit"}, same_start=True)
    assert (small.model.backbone, small.model.depth, small.init.checkpoint) == ("bot_resnet_tiny", 0, "")
    small = row_config(ablation_file, transreid, 0, {"init.checkpoint": "vit"}, same_start=True)
    assert (small.model.backbone, small.model.jpm, small.init.checkpoint) == ("vit_tiny", True, "vit")
    small = row_config(ablation_file, transreid, 0, {})
    assert (small.model.backbone, small.model.depth, small.optim.lr) == ("vit_tiny", 1, 0.008)
    assert read_options(small)


@pytest.mark.parametrize("same_start", [False, True])
@pytest.mark.parametrize("name", ["night600", "demo"])
def test_a_process_of_its_own_trains_a_row_with_the_same_options(name, same_start, tmp_path):
    """This is how --jobs trains. The process reads its options from its command line."""
    file = str(ROOT / f"configs/{name}.py")
    for row in (row for table in TABLES.values() for row in table):
        overrides = {"init.checkpoint": "a/{backbone}", "model.depth": 0, "degradation.light": (0.1, 0.5)}
        config = row_config(file, row, 1, overrides, same_start)
        _, _, module, *place = train_command(file, Training(row, 1, config, tmp_path))
        place, argv = place[:4], ["", *place[4:]]
        assert [module, *place] == ["nrsrd_jax.train", "--config", f"{file}:{row.variant}", "--workdir", str(tmp_path)]
        values = flags.FlagValues()
        config_flags.DEFINE_config_dict("config", variant_config(file, row), flag_values=values, sys_argv=argv)
        values(argv)
        assert flatten(values["config"].value) == flatten(config), row.name


def test_a_row_that_cannot_be_trained_is_named_and_the_others_are_trained(ablation_file, tmp_path, untrained):
    rows = rows_of("ide", "transreid_ssl", "nrsrd")
    results, missing = run_ablation(ablation_file, rows, 1, tmp_path / "w", {"image_size": (128, 64)}, same_start=True)
    assert list(results) == ["ide", "transreid_ssl"]
    assert "train a teacher with" in missing["nrsrd"]
    table = (tmp_path / "w/ablation.md").read_text()
    assert "| ide | 1 | 25.0 |" in table
    assert table.count(" | ".join(COSTS)) == 2
    assert "Not trained: nrsrd, because teacher.checkpoint" in table


def test_all_weights_of_the_methods_may_be_missing(ablation_file, tmp_path, model, untrained, capsys, monkeypatch):
    """The reason is told before the first training, and the table keeps its columns."""
    (tmp_path / "vit_tiny").symlink_to(model)
    # Each training keeps what was printed before it.
    seen = []
    monkeypatch.setattr(
        ablation, "train", lambda *_, **__: seen.append(capsys.readouterr().out) or dict.fromkeys(TITLES, 0.25)
    )
    overrides = {"init.checkpoint": str(tmp_path / "{backbone}"), "image_size": (128, 64)}
    run_ablation(ablation_file, rows_of("ide", "transreid_ssl"), 1, tmp_path / "w", overrides, same_start=True)
    assert f"row ide is left out: init.checkpoint: {tmp_path}/resnet_tiny does not exist" in seen[0]
    table = (tmp_path / "w/ablation.md").read_text()
    assert "| GFLOP |" in table
    assert ablation_tables.UNBUILT in table


@pytest.mark.parametrize("same_start", [False, True])
def test_table_1_shows_the_papers_numbers_of_rows_tested_as_published(
    ablation_file, tmp_path, untrained, monkeypatch, same_start
):
    """IDE's official code also tests mirrored images, and the others do not."""
    # The table has the paper's numbers only if the data has the published size.
    for split, count in (("train", 32), ("query", 4)):
        monkeypatch.setitem(LAYOUTS["night600"].published[""], split, count)
    options = {"train.batch_size": 8, "image_size": (128, 64)}
    rows = rows_of("ide", "bot", "transreid_ssl")
    for name, overrides, shown in (("own", {}, "3.3 5.4 9.5"), ("flip", {"eval.flip": True}, "3.3")):
        run_ablation(ablation_file, rows, 1, tmp_path / name, options | overrides, same_start=same_start)
        lines = [line.split(" | ") for line in (tmp_path / name / "ablation.md").read_text().splitlines()]
        place = lines[0].index("paper's mAP")
        assert " ".join(line[place] for line in lines[2:5]).strip() == shown


def test_a_folder_with_a_run_of_other_options_stops_the_command(ablation_file, tmp_path, monkeypatch):
    monkeypatch.setattr(ablation, "train", pytest.fail)
    rows = rows_of("ide", "transreid_ssl")
    run = tmp_path / "w/ide-seed0"
    (run / "checkpoints/1").mkdir(parents=True)
    # This is the config of the published training, and the ablation below has another, with the common start.
    save_config(read_options(row_config(ablation_file, rows[0], 0, {})), run / "config.json")
    with pytest.raises(InputError, match=r"row ide: .* holds a run with other options"):
        run_ablation(ablation_file, rows, 1, tmp_path / "w", {}, same_start=True)
    with pytest.raises(InputError, match=r"row ide: optim\.lr is -1"):
        run_ablation(ablation_file, rows, 1, tmp_path / "v", {"optim.lr": -1.0}, same_start=True)
    assert default_workdir("demo.py", "1", True) == default_workdir("demo.py", "1", False) + "-same-start"


def test_idf_keeps_its_pixels_with_the_recipe_of_another_method():
    options = read_options(row_config(NIGHT, *rows_of("idf"), 0, {}, same_start=True))
    assert (options.augment.erasing, options.augment.erasing_fill) == (0.5, "0,0,0")
    check_model(options)


def test_another_backbone_is_only_for_the_rows_on_the_vit_of_the_config():
    overrides = {"model.backbone": "vit_small"}
    chosen = [row_config(NIGHT, row, 0, overrides, same_start=True).model.backbone for row in TABLES["1"]]
    assert chosen == [*(f"{name}_resnet50" for name in ("ide", "pcb", "bot", "agw", "idf")), *["vit_small"] * 3]
    for row, own in zip(rows_of("ide", "transreid"), ("ide_resnet50", "vit_base"), strict=True):
        with pytest.raises(InputError, match=f"model.backbone=vit_small: its official code trains {own}; leave it out"):
            row_config(NIGHT, row, 0, overrides)
    tiny = row_config(NIGHT, *rows_of("bot"), 0, {"model.backbone": "vit_tiny"}, same_start=True)
    assert tiny.model.backbone == "bot_resnet_tiny"


def test_attention_on_a_resnet_is_refused_before_images_are_read(ablation_file, tmp_path):
    rows = (parse_row("x=nra,model.backbone=bot_resnet_tiny,model.depth=0"),)
    with pytest.raises(InputError, match=r"row x: model\.norm_ratio needs attention, which a ResNet does not have"):
        run_ablation(ablation_file, rows, 1, tmp_path / "w", {})
    assert not (tmp_path / "w").exists()
