"""How a classifier stands small changes of its inputs, and what its matrices amplify."""
