"""XOR by SGD over its effective dynamics, in TensorBoard. The command does it: torchlimits run xor.

Then tensorboard --logdir runs, and localhost:6006/?smoothing=0#custom_scalars&_smoothingWeight=0
"""

import torchlimits as tl

problem = tl.GaussianMixture.xor(dim=200, width=4, snr=8.0, ridge=0.05)
measured = tl.train(problem, step_size=2.0, time=4.0, seed=1)
dynamics = problem.dynamics(step_size=2.0, level=-1)  # a level up is more accurate, and slower
predicted = dynamics.solve(measured)  # band=True adds where 95 % of runs are, in a minute
print(tl.compare(measured, predicted))
tl.tensorboard.write("runs/overlay", measured=measured, predicted=predicted)
