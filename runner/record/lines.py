"""A line of the record as people read it."""


def shown(key: str, value: float) -> str:
    """A measure's value."""
    return f"{100 * value:.2f} %" if "accuracy" in key else f"{value:.4f}"


def row(line: dict, epochs: int, unit: str) -> str:
    """Of an epoch, or whatever `unit` is, out of so many."""
    parts = [f"{unit} {line['epoch']:>{len(str(epochs))}}/{epochs}"]
    parts += [f"loss {line['train_loss']:.4f}"] if line["step"] else []
    for name in ("train", "val", "test") if line["step"] else ("val", "test"):
        if f"{name}_accuracy" in line:
            parts.append(f"{name} {100 * line[f'{name}_accuracy']:.2f} %")
    of = "test" if any(key.startswith("test_") for key in line) else "val"  # where test is not measured
    for key in ("miou", "map", "nll", "perplexity", "ece", "mae", "rmse"):
        if line.get(f"{of}_{key}") is not None:
            parts.append(f"{key} {line[f'{of}_{key}']:.4f}")
    if not {f"{of}_nll", f"{of}_mae"} & line.keys():  # a loss with measures of its own
        parts += [f"{key} {shown(key, line[key])}" for key in line if key.startswith(("val_", "test_"))]
    if "client_accuracy_worst" in line:
        parts.append(f"worst client {100 * line['client_accuracy_worst']:.2f} %")
    parts += [f"lr {line['lr']:.4g}", f"{line['images_per_second']:,.0f}/s"] if line["step"] else []
    return "  ".join(parts)
