"""Networks that are composed of everything that makes tracing hard, for tests of what holds for any network.

A network is a stem, parts that keep the shape (B, C, 8, 8) of its features, a head, and a wrapper. Each part is a
function that makes a module, and its name says what is awkward about it.
"""

# Each registers its parts, heads or wrappers.
from awkward_networks import heads, layers, machinery, parameters, sequences, state, wrappers  # noqa: F401
