"""Model families: what a checkpoint's configuration says (`spec`), how its forward pass runs, how it is read out."""
