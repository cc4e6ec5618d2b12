"""A stand-in for envpool with its semantics, whose episodes follow a script: what the adapter makes of it is exact."""

import numpy as np


class ScriptedPool:
    """Environment i plays episodes of ``lengths[i]`` timesteps, in turn; one of negative length ends truncated.

    An image is filled with ``16 * environment + timestep of the episode`` plus 100 in odd episodes; the reward of a
    timestep is its number. As in envpool, the step after an end resets: it ignores its action and has reward 0.
    """

    def __init__(self, lengths):
        self.lengths = lengths
        self.n = len(lengths)
        self.taken = []  # (environments, actions) of every step, resets included

    def reset(self):
        self.episode, self.t = np.zeros(self.n, int), np.zeros(self.n, int)
        self.over = np.zeros(self.n, bool)
        return self._observe(np.arange(self.n)), self._info(np.arange(self.n))

    def send(self, actions):
        self.actions = actions

    def recv(self):
        return self.step(self.actions, np.arange(self.n, dtype=np.int32))

    def step(self, actions, env_ids):
        assert env_ids.dtype == np.int32 and len(actions) == len(env_ids)
        env_ids = env_ids[::-1]  # envpool does not promise an order for a part of the environments
        self.taken.append((sorted(env_ids.tolist()), actions.tolist()))
        if len(env_ids) == self.n and not self.over.any():
            env_ids = np.sort(env_ids)
        resets = self.over[env_ids]
        self.episode[env_ids[resets]] += 1
        self.t[env_ids] = np.where(resets, 0, self.t[env_ids] + 1)
        length = np.array([self.lengths[i][self.episode[i] % len(self.lengths[i])] for i in env_ids])
        done = self.t[env_ids] == np.abs(length)
        self.over[env_ids] = done
        rewards = np.where(resets, 0, self.t[env_ids]).astype(np.float32)
        return self._observe(env_ids), rewards, done & (length > 0), done & (length < 0), self._info(env_ids)

    def _observe(self, env_ids):
        values = 16 * env_ids + self.t[env_ids] + 100 * (self.episode[env_ids] % 2)
        return np.broadcast_to(values[:, None, None, None], (len(env_ids), 3, 64, 64)).astype(np.uint8)

    def _info(self, env_ids):
        levels = (10 * env_ids + self.episode[env_ids]).astype(np.int32)
        return {"env_id": env_ids, "level_seed": levels, "prev_level_complete": self.over[env_ids].astype(np.int32)}
