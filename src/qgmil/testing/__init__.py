"""The contract of an aggregator as checks that anyone can run on theirs; needs no test framework.

```python
from qgmil.testing import check_aggregator

check_aggregator("abmil_gated")  # a registered name, a class, or factory(in_dim=, num_classes=, **options)
```
"""

from qgmil.errors import ContractError
from qgmil.testing.suite import aggregator_checks, check_aggregator, list_checks

__all__ = ["ContractError", "aggregator_checks", "check_aggregator", "list_checks"]
