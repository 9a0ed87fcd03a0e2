"""Test that weights of other projects are read under their own names, and that unsupported models are named."""

import argparse

import numpy as np
import pytest
from people import run
from weight_files import backbone_hash, prefixed, rows, save, zeros

from nrsrd_jax.checkpoint import weights_hash
from nrsrd_jax.errors import InputError
from nrsrd_jax.weights import from_torch

pytestmark = pytest.mark.slow


def hugging_face(bare, version):
    """Return the same tensors under the names of transformers 4 or 5."""
    named = {}
    for name, value in bare.items():
        if ".attn.qkv." in name:
            for part, third in zip(("query", "key", "value"), np.split(value, 3), strict=True):
                named[name.replace(".attn.qkv.", f".attention.attention.{part}.")] = third
        else:
            named[name] = value
    changes = (
        ("cls_token", "embeddings.cls_token"), ("pos_embed", "embeddings.position_embeddings"),
        ("patch_embed.proj.", "embeddings.patch_embeddings.projection."), ("blocks.", "encoder.layer."),
        (".norm1.", ".layernorm_before."), (".norm2.", ".layernorm_after."),
        (".attn.proj.", ".attention.output.dense."),
        (".mlp.fc1.", ".intermediate.dense."), (".mlp.fc2.", ".output.dense."),
    )  # fmt: skip
    out = {}
    newer = (("encoder.layer.", "layers."), (".attention.attention.query", ".attention.q_proj"),
             (".attention.attention.key", ".attention.k_proj"), (".attention.attention.value", ".attention.v_proj"),
             (".attention.output.dense", ".attention.o_proj"), (".intermediate.dense", ".mlp.fc1"),
             (".output.dense", ".mlp.fc2"))  # fmt: skip
    for name, value in named.items():
        for old, new in changes + newer * (version == 5):
            name = name.replace(old, new)
        out[name.replace("norm.", "layernorm.") if name.startswith("norm.") else name] = value
    return out


@pytest.mark.parametrize(("around", "version"), [("", 4), ("model.", 4), ("", 5)])
@pytest.mark.parametrize("prefix", ["", "vit.", "backbone.", "deit."])
def test_a_hugging_face_vit_is_read_without_its_heads(tmp_path, bare, around, version, prefix):
    pooler = {"pooler.dense.weight": np.ones((192, 192), np.float32)}
    tensors = prefixed(around + prefix, hugging_face(bare, version) | pooler)
    tensors[f"{around}classifier.weight"] = np.ones((1000, 192), np.float32)
    tensors[f"{around}classifier.bias"] = np.ones(1000, np.float32)
    _, variables, _, report = from_torch.convert(save(tmp_path / "in.bin", tensors))
    assert not report.faults
    assert "query, key and value joined" in rows(report)["base.blocks.0.attn.qkv.weight"][1]
    assert backbone_hash(variables) == backbone_hash(from_torch.convert(save(tmp_path / "w.pth", bare))[1])


def test_a_missing_tensor_of_a_hugging_face_vit_is_reported(tmp_path, bare):
    tensors = hugging_face(bare, 4)
    del tensors["encoder.layer.0.attention.attention.key.weight"]
    report = from_torch.convert(save(tmp_path / "in.pth", tensors))[-1]
    assert any("base.blocks.0.attn.qkv.weight: missing" in fault for fault in report.faults)


@pytest.mark.parametrize("extra", [
    {"head.weight": np.ones((9, 192), np.float32), "head.bias": np.ones(9, np.float32)},
    {"fc_norm.weight": np.ones(192, np.float32), "fc_norm.bias": np.ones(192, np.float32)},
    {"head_dist.weight": np.ones((9, 192), np.float32), "pre_logits.fc.weight": np.ones(3, np.float32)},
    {"mask_token": np.ones((1, 1, 8), np.float32), "decoder_blocks.0.norm1.weight": np.ones(8, np.float32)},
    {"masked_embed": np.ones((1, 192), np.float32)},
])  # fmt: skip
def test_heads_of_timm_and_of_pretraining_are_ignored(tmp_path, bare, extra):
    report = from_torch.convert(save(tmp_path / "in.pth", bare | extra))[-1]
    assert not report.faults
    assert all(rows(report)[f"base.{name}"][0] == "ignored" for name in extra)


def test_a_model_that_averages_its_patches_is_read_with_a_warning(tmp_path, bare):
    pooled = {name.replace("norm.", "fc_norm.") if name.startswith("norm.") else name: v for name, v in bare.items()}
    shown = run("convert/from_torch.py", save(tmp_path / "in.pth", pooled), "--dry_run").stdout
    assert "the last norm is from fc_norm, which in the file normalises the mean of the patches" in shown


def personvit(bare):
    """Return an iBOT checkpoint of a PersonViT pretraining, with the names and other entries that its code writes."""
    heads = {f"head.{name}": np.ones(4, np.float32) for name in ("mlp.0.weight", "last_layer.weight_g", "mlp2.0.bias")}
    student = prefixed("module.backbone.", zeros(bare) | {"masked_embed": np.ones((1, 192), np.float32)})
    return {
        "student": student, "teacher": prefixed("backbone.", bare) | heads, "optimizer": {"state": {}},
        "epoch": 260, "args": argparse.Namespace(arch="vit_base", data_path="/data/LUP"),
        "ibot_loss": {"center": np.ones((1, 8), np.float32), "center2": np.ones((1, 1, 8), np.float32)},
        "fp16_scaler": {"scale": 65536.0},
    }  # fmt: skip


def test_personvit_is_read_before_and_after_training_on_people(tmp_path, bare, whole):
    description, variables, _, report = from_torch.convert(save(tmp_path / "checkpoint0260.pth", personvit(bare)))
    assert not report.faults
    assert rows(report)["ibot_loss"][0] == rows(report)["head.mlp2.0.bias"][0] == "ignored"
    np.testing.assert_array_equal(variables["params"]["base"]["cls_token"], bare["cls_token"])
    tuned = whole[0] | {"base.fc.weight": np.ones((1000, 192), np.float32), "base.fc.bias": np.ones(1000, np.float32)}
    tuned["bottleneck.num_batches_tracked"] = np.array(9)
    description, variables, _, report = from_torch.convert(save(tmp_path / "transformer_120.pth", tuned))
    assert not report.faults
    assert description.classes == 5
    assert weights_hash(variables) == whole[1]


@pytest.mark.parametrize(("names", "what"), [
    (["backbone.stages.0.blocks.0.attn.w_msa.relative_position_bias_table", "backbone.semantic_embed_w.0.weight"],
     "a Swin Transformer of SOLIDER"),
    (["layers.0.blocks.0.attn.relative_position_bias_table"], "a Swin Transformer"),
    (["visual.class_embedding", "visual.conv1.weight"], "a ViT of CLIP"),
    (["class_token", "conv_proj.weight"], "a ViT with torchvision's names"),
    (["pos_embed", "blocks.0.attn.qkv.weight"], "a ViT without a class token"),
])  # fmt: skip
def test_the_error_names_a_model_that_is_not_supported(tmp_path, names, what):
    save(tmp_path / "in.pth", {"teacher": {name: np.ones(3, np.float32) for name in names}, "epoch": 1})
    with pytest.raises(InputError, match=f"it contains {what}") as caught:
        from_torch.convert(tmp_path / "in.pth")
    assert "supported are a ViT with a class token" in str(caught.value)


def test_a_resnet_with_other_stages_is_refused(tmp_path):
    save(tmp_path / "in.pth", {name: np.ones(3, np.float32) for name in ("conv1.weight", "layer1.0.conv1.weight")})
    with pytest.raises(InputError, match="its ResNet has other stages or heads than bot_resnet50"):
        from_torch.convert(tmp_path / "in.pth")
