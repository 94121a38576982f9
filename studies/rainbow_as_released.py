"""algos/rainbow.py with what the code of Revisiting Rainbow does otherwise, to see what explains a gap to its figures.

    python studies/rainbow_as_released.py DEPARTURES [flags of rainbow.py]

DEPARTURES are names with commas between them, of the network and the exploration of JohanSamir/revisiting_rainbow @
521a3c2 (which leaves the loss unweighted, too: --importance-exponent 0; at 2d49d68 it is weighted, as here):

weights  the convolution's: Xavier-uniform for a kernel of 3 x 3 x 3, of which an image meets the middle; biases zero
start    no random actions at first: epsilon is --end-e from the first step on
noise    drawn once and never again, from the same key for every layer and for both of its vectors
streams  the advantages are centered over the atoms, which the softmax undoes, and not over the actions

Their order does not matter; the run's name is made of them: --exp-name rainbow_weights_start, say. All else is as
with the script itself. benchmark/results/rainbow_as_released.csv has for each log of a run its episodic_return, and
mean_return and episodes of all steps so far.
"""

import sys
from pathlib import Path

# The key 0, out of a number that is never negative: XLA would fuse the noise of a known key with the product, slowly.
ZERO = "jax.random.wrap_key_data(jax.random.key_data({key}) * ({number} < 0).astype(jnp.uint32))"
CHANGES = {
    "weights": (
        (
            "        init = pytorch_uniform_init(size**2 * channels)\n",
            "        limit = (6 / (27 * (channels + self.features))) ** 0.5  # Xavier with a kernel of 3 x 3 x 3\n"
            "        init = lambda key, shape: jax.random.uniform(key, shape, minval=-limit, maxval=limit)\n",
        ),
        (
            'bias = self.param("bias", init, (self.features,))\n        if jax',
            'bias = self.param("bias", nn.initializers.zeros, (self.features,))\n        if jax',
        ),
    ),
    "start": (
        ("    return 1 - (1 - args.end_e) * progress\n", "    return args.end_e\n"),
    ),
    "noise": (
        (
            'noise = jax.random.normal(self.make_rng("noise"), (size + size % 2,)).reshape(2, -1)\n',
            'n = lambda k: jax.random.normal(self.scope.rngs["noise"].rng, (k,))\n'
            + " " * 16
            + "noise = jnp.concatenate([n(self.features), n(x.size), jnp.zeros(size % 2)]).reshape(2, -1)\n",
        ),
        (
            "    _, *noise_keys = jax.random.split(key, 4)",
            "    noise_keys = [" + ZERO.format(key="key", number="batch.index[0]") + "] * 3",
        ),
        (", noise=noise_key)\n    action", f", noise={ZERO.format(key='noise_key', number='step')})\n    action"),
    ),
    "streams": (
        ("logits - logits.mean(0)", "logits - logits.mean(-1, keepdims=True)"),
    ),
}  # fmt: skip


def changed(departures):
    """The script's text with these departures; its words must be those that are named here."""
    text = (Path(__file__).parent.parent / "algos" / "rainbow.py").read_text()
    for old, new in (change for name in departures for change in CHANGES[name]):
        if text.count(old) != 1:
            raise ValueError(f"algos/rainbow.py has changed: it does not hold once {old!r}")
        text = text.replace(old, new)
    return text


if __name__ == "__main__":
    given = sys.argv.pop(1).split(",") if len(sys.argv) > 1 else []
    if not given or given[0] in ("-h", "--help"):
        print(__doc__)
        sys.exit(0 if given else 2)
    if unknown := [name for name in given if name not in CHANGES]:
        print(f"error: no departure {unknown[0]!r}; DEPARTURES are of {','.join(CHANGES)}", file=sys.stderr)
        sys.exit(2)
    departures = [name for name in CHANGES if name in given]
    path = Path(__file__).with_name("_".join(["rainbow", *departures]) + ".py")  # its stem is the run's name
    exec(compile(changed(departures), path, "exec"), {"__name__": "__main__", "__file__": str(path)})
