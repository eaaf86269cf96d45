"""Per-example gradients of one block in the form in which they arise, and their exact products without ever being
stored.

Three forms cover every parameter: a sum of outer products (linear weights), an array per example (biases, norms,
whatever was recomputed), and rows of a table (embeddings), the last with the outer products of a tied head added."""

from graddiag.gradients._base import Gradients, Products, Workspace, wide
from graddiag.gradients._dense import Dense
from graddiag.gradients._lookup import Lookup
from graddiag.gradients._outer import Outer

__all__ = ["Dense", "Gradients", "Lookup", "Outer", "Products", "Workspace", "wide"]
