"""Per-example gradients of one block in the form in which they arise, and their exact products without ever being
stored.

Three forms cover every parameter: a sum of outer products (linear weights), an array per example (biases, norms,
whatever was recomputed), and rows of a table (embeddings), the last with the outer products of a tied head added. A
fourth has only what norms and a two-sided projection need of outer products."""

from graddiag.gradients._base import Formable, Formed, Gradients, Products, Workspace, wide
from graddiag.gradients._condensed import Condensed, Shortened
from graddiag.gradients._dense import Dense
from graddiag.gradients._lookup import Lookup
from graddiag.gradients._outer import Outer

__all__ = [
    "Condensed",
    "Dense",
    "Formable",
    "Formed",
    "Gradients",
    "Lookup",
    "Outer",
    "Products",
    "Shortened",
    "Workspace",
    "wide",
]
