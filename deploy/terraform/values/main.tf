# What a cloud created → values of the chart deploy/helm/sie, as YAML. No provider: the output is a function of the inputs.

terraform {
  required_version = ">= 1.9"
}

variable "name" {
  type        = string
  description = "Prefix of all names of the release, and so the name of its service account."
}

variable "image_repository" {
  type        = string
  description = "Repository of the server's image. The tag is chosen at the installation."
}

variable "models_volume" {
  type        = any
  description = "Volume source of Kubernetes with the bucket of models."
}

variable "pools" {
  type = map(object({
    vcpus        = number # of the smallest node of the pool
    memory_mib   = number
    gpus         = number # of one node; 0: a pool without GPUs
    min_replicas = number
    max_replicas = number
    taints       = list(object({ key = string, value = string, effect = string })) # besides nvidia.com/gpu
  }))
  description = "Pools by name. Their nodes have the label sie-pool with this name."
}

variable "storage_egress" {
  type        = list(object({ cidr = string, port = number }))
  description = "What a pod itself must reach to mount the bucket."
  default     = []
}

variable "pod_annotations" {
  type        = map(string)
  description = "Annotations of the server's pods."
  default     = {}
}

locals {
  effects = { NO_SCHEDULE = "NoSchedule", PREFER_NO_SCHEDULE = "PreferNoSchedule", NO_EXECUTE = "NoExecute" }

  # A pod has one GPU, or a whole node of a pool without GPUs. It leaves 15 % and 1 GiB of the node to the system.
  shares = {
    for name, pool in var.pools : name => {
      cpu    = tostring(max(1, floor(pool.vcpus * 0.85 / max(1, pool.gpus))))
      memory = "${max(1, floor((pool.memory_mib / 1024 * 0.85 - 1) / max(1, pool.gpus)))}Gi"
    }
  }

  pools = [for name, pool in var.pools : {
    name        = name
    device      = pool.gpus > 0 ? "cuda" : "cpu"
    replicas    = max(1, pool.min_replicas) # without autoscaling
    minReplicas = pool.min_replicas
    maxReplicas = pool.max_replicas
    resources = {
      requests = local.shares[name]
      limits   = merge(local.shares[name], pool.gpus > 0 ? { "nvidia.com/gpu" = "1" } : {})
    }
    nodeSelector = { "sie-pool" = name }
    tolerations = [for taint in pool.taints : {
      key      = taint.key
      operator = "Equal"
      value    = taint.value
      effect   = lookup(local.effects, taint.effect, taint.effect)
    }]
  }]
}

output "yaml" {
  description = "A values file for helm."
  value = yamlencode({
    nameOverride = var.name
    image        = { repository = var.image_repository }
    config = {
      offline           = true
      models_dir_poll_s = 60 # each look lists the bucket, which is paid for
    }
    models         = { readOnly = true, volume = var.models_volume }
    pools          = local.pools
    podAnnotations = var.pod_annotations
    networkPolicy  = { egress = { storage = var.storage_egress } }
  })

  precondition {
    condition     = alltrue([for pool in var.pools : pool.min_replicas <= pool.max_replicas])
    error_message = "pools: ${jsonencode([for name, pool in var.pools : name if pool.min_replicas > pool.max_replicas])} has min_replicas above its limit: a GPU has one replica, a node without GPUs one. Raise the limit of the pool, or lower min_replicas."
  }
}
