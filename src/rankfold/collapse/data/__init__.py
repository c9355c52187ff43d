"""Labelled data of any form on their way through a model: what labels mean, which input is cut, the passes."""
