"""The registered variants: environments with other settings. The docstring of each class is the page of its variant."""

from skipdiff_env.env import SkipDiffEnv


class SkipDiffFacesEnv(SkipDiffEnv):
    """SkipDiffFaces-v0: the paper's task on faces, enlarged 8 times.

    ## Description
    A portrait of 16 x 16 pixels becomes one of 128 x 128. Nine coarse steps, then nine decisions, with
    `skip_mode="restart"` and the reward 1/NIQE: `SkipDiff-v0` with the checkpoint `faces-x8`. Everything else is as
    described for `skipdiff_env.env.SkipDiffEnv`.

    The pictures are scikit-image's photographs unless `images` names a folder of portraits, for which the checkpoint
    was trained.

    ## Arguments
    `checkpoint="faces-x8"`, `steps=(10, 10)`. Any argument of `SkipDiff-v0` may be given in addition or instead.

    ## Room for learning
    It is small: the best start is the same for nearly every picture, as `skipdiff evaluate --env SkipDiffFaces-v0`
    shows.

    ## Example
    ```python
    env = gym.make("skipdiff_env:SkipDiffFaces-v0", images="portraits/")
    ```

    ## Version history
    * v0: initial version
    """


class SkipDiffJumpEnv(SkipDiffEnv):
    """SkipDiffJump-v0: the choice of the number and the places of the steps for a picture.

    ## Description
    An episode begins at pure noise and has 19 decisions, each whether to run the network at the next of 20 noise
    levels. SKIP does not compute anything, and the next performed step covers the skipped ones, so latent and noise
    level always match: the decisions of an episode form a schedule of 1 to 20 forwards. Smooth pictures are best after
    a few large steps (more steps put grain into flat sky), textured ones need many small steps, and each forward costs
    0.002 of LPIPS.

    The pictures are crops of 64 x 64 pixels of scikit-image's photographs, so that an episode takes a fraction of a
    second. `split="train"` takes half of the photographs and `split="test"` the others: train on the first and report
    results on the second.

    ## Action space
    `Discrete(2)`: 0 DENOISE, 1 SKIP.

    In `SkipDiffStride-v0` the agent instead chooses the number of levels that the next step covers, which algorithms
    learn faster.

    ## Observation space
    `Dict`, for `MultiInputPolicy` of Stable-Baselines3:

    | Key         | Space                   | What                                             |
    |-------------|-------------------------|--------------------------------------------------|
    | `latent`    | `Box(-b, b, (3, 64, 64))` | the latent; pure noise at first                |
    | `condition` | `Box(-1, 1, (3, 64, 64))` | the condition of the net, the enlarged picture |
    | `step`      | `Box(0, 1, (1,))`       | t / 20, the step of the next decision            |
    | `level`     | `Box(0, 1, (1,))`       | l / 20, the level of the latent                  |

    With a pair as `nfe_penalty` the price of each episode is drawn, and `price` is also observed.

    ## Reward
    0 until the last env step, then -LPIPS - 0.002 · forwards. `report_metrics` can add PSNR and others to `info`.

    ## Episode end, info, rendering
    As described for `skipdiff_env.env.SkipDiffEnv`; every episode has 19 env steps.

    ## Arguments
    `checkpoint="natural-x4"`, `steps=(1, 20)`, `skip_mode="jump"`, `fine_sampler="ddim"` (no added noise, for the least
    variance), `observation="dict"`, `metric="lpips"`, `reward="negative"`, `nfe_penalty=0.002`, `image_size=64`. Any
    argument of `SkipDiff-v0` may be given in addition or instead.

    ## Example
    ```python
    env = gym.make("skipdiff_env:SkipDiffJump-v0", split="train", report_metrics="psnr")
    ```

    ## Version history
    * v0: initial version
    """


class SkipDiffPhotoEnv(SkipDiffJumpEnv):
    """SkipDiffPhoto-v0: `SkipDiffJump-v0` with blurred, noisy and compressed inputs, like those that people have.

    ## Description
    Everything is as described for `SkipDiffJumpEnv`, except for `degradation="photo"`: blur, kernel of shrinking,
    noise, quality of JPEG and their order are drawn for each picture, see `Degradation`. They are the same under every
    noise seed, and `info["degradation"]` holds their strengths. With `degradation="photo:0.5"` all pictures have the
    same strength.

    The checkpoint is photo-x4, whose net and predictor were trained on such inputs. The best number of steps depends
    more on the picture than in the other environments: it is smaller for strong noise and compression.

    ## Version history
    * v0: initial version
    """


class SkipDiffJump128Env(SkipDiffJumpEnv):
    """SkipDiffJump128-v0: `SkipDiffJump-v0` with pictures of 128 x 128 pixels.

    ## Description
    Everything is as described for `SkipDiffJumpEnv`, except for `image_size=128`. A forward takes four times as long;
    in return the best schedules of pictures differ more, and the noise matters less.

    ## Version history
    * v0: initial version
    """


class SkipDiffBanditEnv(SkipDiffEnv):
    """SkipDiffBandit-v0: the choice of the work that one forward does for a picture.

    ## Description
    The agent makes one decision for each picture, before the network runs: it chooses one of several schedules. By
    default these are one forward with 1, 2, 4, 8 or 16 substeps: from faithful to rich in invented detail. Few substeps
    are best for smooth pictures, many for textured ones. An episode has one env step, so this is a contextual bandit.

    ## Action space
    `Discrete(K)`: the index of the schedule in `schedules`.

    ## Observation space
    `Box(-3, 1, (42,))`: the statistics of the network's condition, the enlarged picture, see
    `skipdiff_env.features.features`, for `MlpPolicy` of Stable-Baselines3.

    ## Reward
    -LPIPS - 0.002 · forwards.

    ## Arguments
    Those of `SkipDiffJump-v0`, and `decisions="schedule"`, `observation="features"`. `schedules` lists other schedules,
    as in `schedules=["20*8", "20*4,10*4"]`; all begin at step N of `steps=(S, N)`.

    ## Example
    ```python
    env = gym.make("skipdiff_env:SkipDiffBandit-v0", split="train")
    ```

    ## Version history
    * v0: initial version
    """


class SkipDiffStrideEnv(SkipDiffEnv):
    """SkipDiffStride-v0: the choice of the levels that each forward covers, and of the work that it does.

    ## Description
    An episode begins at pure noise and has one decision for each forward of the network: the number of the 20 levels
    that it covers, and the number of even steps whose work it does. An episode ends when it reaches the clean picture,
    after 1 to 20 env steps.

    ## Action space
    `MultiDiscrete([20, 5])`: the levels to cover, minus 1, and the index of the substeps among 1, 2, 4, 8 and 16; for a
    network without substeps `Discrete(20)`. `action_masks()` returns the possible actions. A stride that reaches below
    the clean picture ends there.

    ## Observation space
    `Box((85,))`: 42 statistics of the network's condition, the enlarged picture, the level, and the same statistics of
    the network's last estimate, 0 before the first forward.

    ## Reward
    0 until the last env step, then -LPIPS - 0.002 · forwards.

    ## Arguments
    Those of `SkipDiffJump-v0`, and `decisions="stride"`, `observation="features"`. `substeps` sets other numbers of
    substeps.

    ## Example
    ```python
    env = gym.make("skipdiff_env:SkipDiffStride-v0", split="train")
    ```

    ## Version history
    * v0: initial version
    """


class SkipDiffContinuousEnv(SkipDiffEnv):
    """SkipDiffContinuous-v0: `SkipDiffStride-v0` with numbers in -1 … 1 as actions.

    ## Description
    Everything is as described for `SkipDiffStrideEnv`, except for the action, which is for algorithms with continuous
    actions, such as SAC and TD3.

    ## Action space
    `Box(-1, 1, (2,))`: the share of the remaining way that the forward covers, from one level (-1) to all (1), and the
    logarithm of its substeps, from 1 (-1) to the most that the network has learnt (1); for a network without substeps
    `Box(-1, 1, (1,))`.

    ## Arguments
    Those of `SkipDiffStride-v0`, with `decisions="continuous"`.

    ## Example
    ```python
    env = gym.make("skipdiff_env:SkipDiffContinuous-v0", split="train")
    ```

    ## Version history
    * v0: initial version
    """
