"""Whether an output is what apply wrote: files, tensors and layers; and how close its weights are to the original."""
