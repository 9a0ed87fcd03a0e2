"""Norm-Ratio Attention implements eq. 2 and 3 of the paper."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nrsrd_jax.models import attention, create_model, initialise

pytestmark = pytest.mark.slow


def qkv(seed=0, shape=(2, 5, 3, 64)):
    return jax.random.normal(jax.random.key(seed), (3, *shape))


def norm_ratio_attention(q, k, v, strength=1.0, scope="head"):
    norms = (attention.token_norms(x, scope) for x in (q, k))
    return attention.attend(attention.attention_logits(q, k) - attention.norm_ratio_penalty(*norms, strength), v)


@pytest.mark.parametrize("scope", ["head", "token"])
def test_the_penalty_equals_a_plain_loop(scope):
    q, k, _ = np.asarray(qkv())
    # With a λ of 1, a missing factor would not show.
    penalty = attention.norm_ratio_penalty(*(attention.token_norms(jnp.asarray(x), scope) for x in (q, k)), 0.7)
    for head in range(3):
        part = slice(head, head + 1) if scope == "head" else slice(None)
        for i in range(5):
            for j in range(5):
                expected = 0.7 * np.linalg.norm(k[1, j, part]) / (np.linalg.norm(q[1, i, part]) + 1e-6)
                np.testing.assert_allclose(penalty[1, head, i, j], expected, rtol=1e-5)


def test_only_differences_between_key_norms_change_attention():
    """γ does not cancel in the softmax, but if all keys have the same norm, attention does not change."""
    q, k, v = qkv()
    plain = attention.attend(attention.attention_logits(q, k), v)[1]
    assert np.abs(norm_ratio_attention(q, k, v)[1] - plain).max() > 1e-3
    equal = k / jnp.linalg.norm(k, axis=-1, keepdims=True)
    plain = attention.attend(attention.attention_logits(q, equal), v)[1]
    np.testing.assert_allclose(norm_ratio_attention(q, equal, v)[1], plain, atol=1e-6)


def test_long_keys_get_less_attention():
    q, k, v = qkv()
    # Short queries make γ large and the products small, so γ decides.
    weights = norm_ratio_attention(jnp.zeros_like(q) + 1e-3, k.at[:, 2].mul(5), v)[1]
    assert (weights[..., 2] == weights.min(-1)).all()


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
# In float32 the square of 1e-30 is 0, so these queries have the norm 0 although they are not 0.
@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e-6])
def test_zero_query_norms_give_finite_values_and_gradients(scale, dtype):
    q, k, v = qkv()

    def loss(q, k, strength):
        return norm_ratio_attention(q.astype(dtype), k.astype(dtype), v.astype(dtype), strength)[0].sum()

    # Keys of length 0 are tested too: the derivative of a norm at 0 is not defined.
    gradients = jax.grad(loss, argnums=(0, 1, 2))(q * scale, k.at[0].set(0), 1.0)
    assert all(np.isfinite(g).all() for g in gradients)


@pytest.mark.parametrize(("dtype", "tolerance"), [(jnp.float32, 1e-5), (jnp.bfloat16, 0.03)])
def test_asking_for_maps_does_not_change_the_embedding(dtype, tolerance):
    """Patch queries of the last block do not affect the embedding, so computing their maps does not change it."""
    model = create_model("vit_tiny", classes=5, depth=2, norm_ratio=attention.NormRatio(), dtype=dtype)
    variables = jax.jit(lambda key: initialise(model, key, (64, 32)))(jax.random.key(0))
    images = jax.random.normal(jax.random.key(1), (2, 64, 32, 3))
    out, maps = (jax.jit(functools.partial(model.apply, maps=maps))(variables, images) for maps in (False, True))
    np.testing.assert_allclose(out["embedding"], maps["embedding"], atol=tolerance)
    if dtype == jnp.bfloat16:
        return
    assert "maps" not in out
    shown = maps["maps"]
    assert shown["attention"].shape == (2, 2, 3, 9, 9)
    expected = (shown["k_norm"][:, -1] / shown["q_norm"][:, -1, :, :1]).std(-1)
    np.testing.assert_allclose(shown["leverage"], expected, rtol=1e-3)
    np.testing.assert_allclose(out["diagnostics"]["leverage"], expected.mean(), rtol=1e-3)


# This is why one more coordinate of queries and keys can hold γ, as a test below shows.
def test_the_penalty_is_rank_one():
    """γ is an outer product over (query, key) in every image and head."""
    q, k, _ = qkv()
    penalty = attention.norm_ratio_penalty(*(attention.token_norms(x) for x in (q, k)), 1.0)
    values = np.linalg.svd(np.asarray(penalty), compute_uv=False)  # [B, H, 5]
    assert (values[..., 1] < 1e-6 * values[..., 0]).all()


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_the_standard_form_does_not_depend_on_the_scale_of_the_norms(scale):
    """γ has mean 0 and standard deviation λ over the keys. Equal norms give γ = 0 and finite gradients."""
    q, k, _ = qkv()
    # This form uses only the norms of keys, so longer queries must change nothing.
    penalty = attention.NormRatio(form="standard").penalty(q * 7, k * scale, jnp.float32(0.7))
    assert penalty.shape == (*penalty.shape[:2], 1, k.shape[1])
    np.testing.assert_allclose(penalty.mean(-1), 0, atol=1e-5)
    np.testing.assert_allclose(penalty.std(-1), 0.7, rtol=1e-3)
    equal = jnp.full((1, 2, 5), scale)
    assert not np.any(attention.standard_norm_penalty(equal, jnp.float32(1)))
    gradient = jax.grad(lambda norms: attention.standard_norm_penalty(norms, jnp.float32(1))[..., 0].sum())(equal)
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize(("dtype", "tolerance"), [(jnp.float32, 2e-5), (jnp.bfloat16, 0.01)])
# An image of 256×128 pixels has 129 tokens.
@pytest.mark.parametrize("tokens", [1, 5, 129])
def test_an_extra_coordinate_gives_the_same_logits(dtype, tolerance, tokens):
    """Any attention kernel computes NRA from q' = [q/√d, −λ/(‖q‖+ε)] and k' = [k, ‖k‖].

    Our logits agree with it, also if q and k are bfloat16.
    """
    q, k, _ = qkv(shape=(2, tokens, 3, 64)).astype(dtype)
    q_norm, k_norm = (attention.token_norms(x) for x in (q, k))
    ours = attention.attention_logits(q, k) - attention.norm_ratio_penalty(q_norm, k_norm, 0.7)
    assert ours.dtype == jnp.float32
    wide = [np.asarray(x, np.float64) for x in (q, k)]
    longer_q = np.concatenate([wide[0] / 8, -0.7 / (np.linalg.norm(wide[0], axis=-1, keepdims=True) + 1e-6)], -1)
    longer_k = np.concatenate([wide[1], np.linalg.norm(wide[1], axis=-1, keepdims=True)], -1)
    np.testing.assert_allclose(ours, np.einsum("bmhk,bnhk->bhmn", longer_q, longer_k), atol=tolerance)


def test_a_penalty_that_depends_on_the_query_alone_cancels():
    """1/‖Q‖ shifts all logits of a query equally, so without ‖K‖ NRA would have no effect."""
    q, k, v = qkv()
    logits = attention.attention_logits(q, k)
    shift = 1 / (attention.token_norms(q)[..., None] + 1e-6)
    np.testing.assert_allclose(attention.attend(logits - shift, v)[1], attention.attend(logits, v)[1], atol=1e-6)


@pytest.fixture
def library(monkeypatch):
    """Replace cuDNN's attention by the implementation of JAX that needs no GPU."""
    theirs = jax.nn.dot_product_attention
    given = lambda *args, **options: theirs(*args, **options | {"implementation": "xla"})  # noqa: E731
    monkeypatch.setattr(jax.nn, "dot_product_attention", given)


# The sizes have 9 and 4 tokens: fused attention pads odd counts.
@pytest.mark.parametrize(("size", "remat"), [((64, 32), False), ((64, 32), True), ((48, 16), False)])
def test_fused_attention_gives_the_same_features_and_gradients(library, size, remat):
    models = [create_model("vit_tiny", classes=5, depth=2, fused=fused, remat=remat) for fused in (False, True)]
    variables = jax.jit(lambda key: initialise(models[0], key, size))(jax.random.key(0))
    images = jax.random.normal(jax.random.key(1), (4, *size, 3))

    def gradients(model):
        def loss(variables):
            # With the same key, both models drop the same paths.
            rngs = {"drop_path": jax.random.key(2)}
            out, _ = model.apply(variables, images, train=True, mutable="batch_stats", rngs=rngs)
            return jnp.square(out["embedding"]).mean(), out["embedding"]

        return jax.jit(jax.grad(loss, has_aux=True))(variables)

    (plain, plain_features), (fused, fused_features) = map(gradients, models)
    np.testing.assert_allclose(fused_features, plain_features, atol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), fused, plain)
    if remat or size != (64, 32):
        return
    # Maps are computed without fused attention, at any size.
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5),
        *(jax.jit(functools.partial(model.apply, maps=True))(variables, images)["maps"] for model in models),
    )


def test_fused_attention_is_used_only_where_it_works(library, monkeypatch, capsys):
    # The cache would keep the first answer.
    works = attention.fusion_works.__wrapped__
    # A CPU does not have cuDNN.
    assert not works()
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert works()
    assert not capsys.readouterr().err
    real = attention.fused_attend
    for factor in (1.1, jnp.nan, jnp.inf):
        monkeypatch.setattr(attention, "fused_attend", lambda *given, factor=factor: factor * real(*given))
        assert not works()
        assert "off" in capsys.readouterr().err
    for error in (NotImplementedError, AssertionError, RuntimeError):

        def refuse(*_, error=error):
            raise error("The head dim must be even")

        monkeypatch.setattr(attention, "fused_attend", refuse)
        assert not works()
        assert "The head dim must be even" in capsys.readouterr().err


def test_each_block_calls_fused_attention_differently(library, monkeypatch):
    """XLA fails on equal calls in a deterministic program. The scales differ, but are equal when rounded to float32."""
    theirs, scales = jax.nn.dot_product_attention, []

    def noted(*args, **options):
        scales.append(options["scale"])
        return theirs(*args, **options)

    monkeypatch.setattr(jax.nn, "dot_product_attention", noted)
    model = create_model("vit_base", depth=12, fused=True)
    jax.eval_shape(lambda key: initialise(model, key, (32, 16)), jax.random.key(0))
    # The last of the twelve blocks computes the CLS token alone, without cuDNN.
    assert len(set(scales)) == len(scales) == 11
    assert {np.float32(scale) for scale in scales} == {np.float32(0.125)}
