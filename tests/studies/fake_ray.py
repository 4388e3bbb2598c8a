"""A stand-in for Ray: workers are objects of this process, and may be told to die."""

import types


class RayActorError(Exception):
    """What Ray raises when a worker died."""


class RayTaskError(Exception):
    """What Ray raises when a task raised; `cause` is what it raised."""

    def __init__(self, cause):
        super().__init__(str(cause))
        self.cause = cause


class Reference:
    def __init__(self, call):
        self.call = call


class Method:
    def __init__(self, actor, name):
        self.actor, self.name = actor, name

    def remote(self, *arguments):
        ray, actor = self.actor.ray, self.actor

        def call():
            if actor.dead or (self.name == "run" and ray.dies(*arguments)):
                actor.dead = True
                msg = "the worker died"
                raise RayActorError(msg)
            try:
                return getattr(actor.object, self.name)(*arguments)
            except Exception as error:
                raise RayTaskError(error) from error

        return Reference(call)


class Actor:
    def __init__(self, ray, thing):
        self.ray, self.object, self.dead = ray, thing, False

    def __getattr__(self, name):
        return Method(self, name)


class Remote:
    def __init__(self, ray, kind):
        self.ray, self.kind = ray, kind

    def options(self, **given):
        self.ray.asked = given
        return self

    def remote(self, *arguments):
        self.ray.started += 1
        return Actor(self.ray, self.kind(*arguments))


def nobody_dies(*_task):
    return False


def wait(refs, timeout):
    return refs[-1:], refs[:-1]  # out of order


def make_ray(dies=nobody_dies, resources=None):
    """Return a module that behaves as `ray` does where studies use it."""
    ray = types.ModuleType("ray")
    ray.exceptions = types.ModuleType("ray.exceptions")
    ray.exceptions.RayActorError = RayActorError
    ray.exceptions.RayTaskError = RayTaskError
    ray.dies, ray.started, ray.inits = dies, 0, []
    ray.is_initialized = lambda: False
    ray.init = lambda **given: ray.inits.append(given)
    ray.shutdown = lambda: ray.inits.append("shutdown")
    ray.cluster_resources = lambda: resources or {"CPU": 4.0}
    ray.put = lambda value: value
    ray.remote = lambda kind: Remote(ray, kind)
    ray.wait = wait
    ray.get = lambda ref: ref.call()
    return ray
