"""GAQAT as `runner.quantization.gaqat` defines it, for one step size, from its two gradients update by update."""


def gradients(task, smooth, period, threshold):
    found, frozen, flips = [], False, 0
    for t in range(len(task)):
        found.append(smooth[t] if frozen else task[t] + smooth[t])
        flips += t > 0 and (task[t] > 0) != (task[t - 1] > 0)
        if (t + 1) % period == 0:
            frozen, flips = flips / period < threshold, 0
    return found
