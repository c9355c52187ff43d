"""Laws for whoever adds an object of their own: each check raises ``AssertionError`` in words.

check_site(sites(model)["encoder.0"], model, example)
check_form(MyForm("mine"), nn.Linear(9, 7), torch.randn(3, 9))
check_reader(my_reader, MyLayer(8, 6), torch.randn(3, 8))
check_method(MyMethod(), nn.Conv2d(4, 8, 3), torch.randn(32, 4, 9, 9))
check_objective(my_objective, model, (inputs, targets))
"""

from rankfold.testing.layers import check_form, check_reader, check_site
from rankfold.testing.methods import check_method
from rankfold.testing.objectives import check_objective

__all__ = ["check_form", "check_method", "check_objective", "check_reader", "check_site"]
