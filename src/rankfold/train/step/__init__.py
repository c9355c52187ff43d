"""What one step of training is made of: groups of parameters, rate, arithmetic, memory layout, gradients."""
