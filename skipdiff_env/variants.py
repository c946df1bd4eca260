"""The registered variants: environments with settings of their own. Each class is the page of its variant."""

from skipdiff_env.env import SkipDiffEnv


class SkipDiffFacesEnv(SkipDiffEnv):
    """SkipDiffFaces-v0: the paper's task on faces, enlarged 8 times.

    ## Description
    A portrait of 16 x 16 pixels becomes one of 128 x 128. Nine coarse steps, then nine decisions, with
    `skip_mode="restart"` and the reward 1/NIQE: `SkipDiff-v0` with the checkpoint `faces-x8`. All the rest is as the
    page of `skipdiff_env.env.SkipDiffEnv` says.

    The pictures are scikit-image's photographs unless `images` names a folder of portraits, which the checkpoint was
    trained for.

    ## Arguments
    `checkpoint="faces-x8"`, `steps=(10, 10)`. Any argument of `SkipDiff-v0` may be given beside them or instead.

    ## What there is to learn
    Little: nearly every picture wants the same start, as `skipdiff evaluate --env SkipDiffFaces-v0` shows.

    ## Example
    ```python
    env = gym.make("skipdiff_env:SkipDiffFaces-v0", images="portraits/")
    ```

    ## Version history
    * v0: initial version
    """


class SkipDiffJumpEnv(SkipDiffEnv):
    """SkipDiffJump-v0: how many steps does this picture need, and which?

    ## Description
    From pure noise, 19 decisions whether to run the network at the next of 20 noise levels. SKIP computes nothing,
    and the next step that is performed covers what was skipped, so latent and noise level always match: the decisions
    of an episode are a schedule of 1 to 20 forwards. Smooth pictures are best after a few large steps (more put grain
    into flat sky), textured ones need many small ones, and each forward costs 0.002 of LPIPS.

    The pictures are crops of 64 x 64 pixels of scikit-image's photographs, so that an episode takes a fraction of a
    second. `split="train"` takes half of the photographs and `split="test"` the others: learn on the first and quote
    results on the second.

    ## Action space
    `Discrete(2)`: 0 DENOISE, 1 SKIP.

    `SkipDiffStride-v0` has another choice: how many levels does the next step cover? Algorithms learn that sooner.

    ## Observation space
    `Dict`, for `MultiInputPolicy` of Stable-Baselines3:

    | Key         | Space                   | What                                             |
    |-------------|-------------------------|--------------------------------------------------|
    | `latent`    | `Box(-b, b, (3, 64, 64))` | the latent; pure noise at first                |
    | `condition` | `Box(-1, 1, (3, 64, 64))` | the enlarged picture that the net starts from  |
    | `step`      | `Box(0, 1, (1,))`       | t / 20, the step that is decided next            |
    | `level`     | `Box(0, 1, (1,))`       | l / 20, the level that the latent stands at      |

    With a pair as `nfe_penalty` each episode draws its own price, and `price` is observed too.

    ## Reward
    0 until the last env step, then -LPIPS - 0.002 · forwards. PSNR and others can be reported by `report_metrics`.

    ## Episode end, info, rendering
    As the page of `skipdiff_env.env.SkipDiffEnv` says; every episode has 19 env steps.

    ## Arguments
    `checkpoint="natural-x4"`, `steps=(1, 20)`, `skip_mode="jump"`, `fine_sampler="ddim"` (no added noise, which leaves
    least to luck), `observation="dict"`, `metric="lpips"`, `reward="negative"`, `nfe_penalty=0.002`, `image_size=64`.
    Any argument of `SkipDiff-v0` may be given beside them or instead.

    ## Example
    ```python
    env = gym.make("skipdiff_env:SkipDiffJump-v0", split="train", report_metrics="psnr")
    ```

    ## Version history
    * v0: initial version
    """


class SkipDiffPhotoEnv(SkipDiffJumpEnv):
    """SkipDiffPhoto-v0: `SkipDiffJump-v0` with inputs as people have them, blurred, noisy and compressed.

    ## Description
    Everything is as the page of `SkipDiffJumpEnv` says, but for `degradation="photo"`: each picture has a blur, a
    kernel of shrinking, noise and its own quality of JPEG, in its own order, as
    `Degradation` says. They are drawn once for each picture and are the same under every noise seed,
    and `info["degradation"]` holds their strengths. `degradation="photo:0.5"` gives all pictures the same strength.

    The checkpoint is photo-x4, whose net and predictor were trained on such inputs. The best number of steps follows
    the picture more than in the other environments: noise and compression that are strong want fewer.

    ## Version history
    * v0: initial version
    """


class SkipDiffJump128Env(SkipDiffJumpEnv):
    """SkipDiffJump128-v0: `SkipDiffJump-v0` with pictures of 128 x 128 pixels.

    ## Description
    Everything is as the page of `SkipDiffJumpEnv` says, but for `image_size=128`. A forward takes four times as long;
    in return pictures differ more in what they need, and the noise matters less.

    ## Version history
    * v0: initial version
    """


class SkipDiffBanditEnv(SkipDiffEnv):
    """SkipDiffBandit-v0: how much work should one forward do for this picture?

    ## Description
    One decision for each picture, before the network runs: which of some schedules it gets. Without other settings
    these are one forward with 1, 2, 4, 8 or 16 substeps: from faithful to rich in invented detail. Smooth pictures want
    few substeps, textured ones many. An episode has one env step, so this is a contextual bandit.

    ## Action space
    `Discrete(K)`: the place of the schedule among `schedules`.

    ## Observation space
    `Box(-3, 1, (42,))`: the statistics of the enlarged picture that the network starts from, see
    `skipdiff_env.features.features`. `MlpPolicy` of Stable-Baselines3 suits it.

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
    """SkipDiffStride-v0: how far should the next forward go, and the work of how many steps should it do?

    ## Description
    From pure noise, one decision for each forward of the network: how many of the 20 levels it covers, and the work of
    how many even steps it does. An episode ends where the clean picture is reached, after 1 to 20 env steps.

    ## Action space
    `MultiDiscrete([20, 5])`: the levels to cover, less 1, and the place of the substeps among 1, 2, 4, 8 and 16; for a
    network without substeps `Discrete(20)`. `action_masks()` says which actions are possible. A stride that reaches
    below the clean picture ends there.

    ## Observation space
    `Box((85,))`: 42 statistics of the enlarged picture that the network starts from, the level, and the same statistics
    of the network's last estimate, 0 before the first forward.

    ## Reward
    0 until the last env step, then -LPIPS - 0.002 · forwards.

    ## Arguments
    Those of `SkipDiffJump-v0`, and `decisions="stride"`, `observation="features"`. `substeps` names other numbers of
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
    Everything is as the page of `SkipDiffStrideEnv` says, but for the action. It suits algorithms of continuous
    actions, such as SAC and TD3.

    ## Action space
    `Box(-1, 1, (2,))`: the share of the remaining way that the forward covers, from one level (-1) to all (1), and the
    logarithm of its substeps, from 1 (-1) to as many as the network has learnt (1); for a network without substeps
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
