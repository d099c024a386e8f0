variable "project_id" {
  type        = string
  description = "Project that everything is created in."

  validation {
    condition     = can(regex("^[a-z][a-z0-9-]{4,28}[a-z0-9]$", var.project_id))
    error_message = "project_id is ${jsonencode(var.project_id)}. Write the id of the project (6 to 30 characters of a-z, 0-9 and '-'), not its name or number: gcloud projects list"
  }
}

variable "name" {
  type        = string
  description = "Name of the cluster; the names of all other resources start with it."
  default     = "sie"

  validation {
    condition     = can(regex("^[a-z][a-z0-9-]{1,18}[a-z0-9]$", var.name))
    error_message = "name is ${jsonencode(var.name)}. It needs 3 to 20 characters of a-z, 0-9 and '-', with a letter first and no '-' last, because names of buckets and pools are made of it."
  }
}

variable "region" {
  type        = string
  description = "Region of the cluster, the bucket and the registry, for example \"europe-west4\"."

  validation {
    condition     = can(regex("^[a-z]+-[a-z]+[0-9]+$", var.region))
    error_message = "region is ${jsonencode(var.region)}. Write a region such as \"europe-west4\", without the letter of a zone."
  }
}

variable "zones" {
  type        = list(string)
  description = "One to three zones of the region, for example [\"europe-west4-a\", \"europe-west4-b\"]. Every pool needs its machine type in all of them."

  validation {
    condition     = length(var.zones) >= 1 && length(var.zones) <= 3 && length(distinct(var.zones)) == length(var.zones)
    error_message = "zones has ${length(var.zones)} entries, ${length(distinct(var.zones))} of them different. Name one to three different zones."
  }

  validation {
    condition     = alltrue([for zone in var.zones : can(regex("^${var.region}-[a-z]$", zone))])
    error_message = "zones has ${jsonencode([for zone in var.zones : zone if !can(regex("^${var.region}-[a-z]$", zone))])}, not in the region ${jsonencode(var.region)}. A zone is the region and a letter, such as \"${var.region}-a\"."
  }
}

variable "vpc_cidr" {
  type        = string
  description = "Private IPv4 range of nodes, pods and services, /16 to /20. Half of it is for pods, with 64 addresses a node."
  default     = "10.64.0.0/16"

  validation {
    condition     = can(cidrhost(var.vpc_cidr, 0)) && try(cidrhost(var.vpc_cidr, 0) == split("/", var.vpc_cidr)[0], false)
    error_message = "vpc_cidr is ${jsonencode(var.vpc_cidr)}, which is no IPv4 range. Write the first address and the length of the prefix, for example \"10.64.0.0/16\"."
  }

  validation {
    condition     = try(tonumber(split("/", var.vpc_cidr)[1]) >= 16 && tonumber(split("/", var.vpc_cidr)[1]) <= 20, false)
    error_message = "vpc_cidr is ${jsonencode(var.vpc_cidr)}. A range smaller than /20 has pods for less than 32 nodes. Use /16 to /20."
  }

  validation {
    condition     = can(regex("^(10\\.|172\\.(1[6-9]|2[0-9]|3[01])\\.|192\\.168\\.)", var.vpc_cidr))
    error_message = "vpc_cidr is ${jsonencode(var.vpc_cidr)}, which is not private. Use a range in 10.0.0.0/8, 172.16.0.0/12 or 192.168.0.0/16."
  }
}

variable "control_plane_cidr" {
  type        = string
  description = "Private range of the control plane, a /28 outside of vpc_cidr."
  default     = "172.16.0.0/28"

  validation {
    condition     = can(cidrhost(var.control_plane_cidr, 0)) && endswith(var.control_plane_cidr, "/28")
    error_message = "control_plane_cidr is ${jsonencode(var.control_plane_cidr)}. GKE needs a range of exactly /28, for example \"172.16.0.0/28\"."
  }

  # Two ranges overlap if the smaller one, cut to the prefix of the larger one, is the larger one.
  validation {
    condition     = try(cidrhost("${split("/", var.control_plane_cidr)[0]}/${split("/", var.vpc_cidr)[1]}", 0) != cidrhost(var.vpc_cidr, 0), true)
    error_message = "control_plane_cidr ${jsonencode(var.control_plane_cidr)} is inside of vpc_cidr ${jsonencode(var.vpc_cidr)}. Choose a range outside of it."
  }
}

variable "internet_egress" {
  type        = bool
  description = "true: nodes reach the internet through Cloud NAT. false: nodes reach only Google's APIs, through Private Google Access."
  default     = true
}

variable "api_cidrs" {
  type        = list(string)
  description = "Public ranges that may reach the Kubernetes API, for example the address of your office. Empty: only from inside of the network."
  default     = []

  validation {
    condition     = alltrue([for cidr in var.api_cidrs : can(cidrhost(cidr, 0)) && !endswith(cidr, "/0")])
    error_message = "api_cidrs has ${jsonencode([for cidr in var.api_cidrs : cidr if !can(cidrhost(cidr, 0)) || endswith(cidr, "/0")])}. Every entry must be a range such as \"203.0.113.7/32\"; a range /0 would open the API to every address."
  }
}

variable "release_channel" {
  type        = string
  description = "Channel of Kubernetes versions. Google upgrades the cluster in the maintenance window."
  default     = "REGULAR"

  validation {
    condition     = contains(["RAPID", "REGULAR", "STABLE", "EXTENDED"], var.release_channel)
    error_message = "release_channel is ${jsonencode(var.release_channel)}. It is RAPID, REGULAR, STABLE or EXTENDED."
  }
}

variable "system_machine_type" {
  type        = string
  description = "Machine type of the one node that always runs, for the cluster's own pods."
  default     = "e2-standard-2"

  validation {
    condition     = can(regex("^(e2|n1|n2|n2d|n4|c3|c4)-[a-z]+-[0-9]+$", var.system_machine_type))
    error_message = "system_machine_type is ${jsonencode(var.system_machine_type)}. Use a machine type without a GPU, such as \"e2-standard-2\"."
  }
}

variable "pools" {
  type = map(object({
    machine_type = string
    max_nodes    = number
    min_replicas = optional(number, 1)
    spot         = optional(bool, false)
    taints       = optional(list(object({ key = string, value = optional(string, "true"), effect = optional(string, "NO_SCHEDULE") })), [])
    disk_gb      = optional(number, 150)
  }))
  description = <<-EOT
    Node pools by name. Each starts at zero nodes and grows up to max_nodes in all zones together. The GPU comes with the
    machine type (g2: L4, g4: RTX PRO 6000, a2: A100, a3: H100 and H200, a4: B200). GKE gives GPU nodes the taint
    nvidia.com/gpu and the label cloud.google.com/gke-accelerator. Nodes have the label sie-pool with the name of their pool.
    The chart gets min_replicas pods at least, and one pod per GPU at most.
  EOT
  default = {
    l4 = { machine_type = "g2-standard-8", max_nodes = 4 }
  }

  validation {
    condition     = alltrue([for name, pool in var.pools : can(regex("^[a-z]([a-z0-9-]{0,28}[a-z0-9])?$", name)) && name != "system"])
    error_message = "pools has the names ${jsonencode([for name, pool in var.pools : name if !can(regex("^[a-z]([a-z0-9-]{0,28}[a-z0-9])?$", name)) || name == "system"])}. A name needs at most 30 characters of a-z, 0-9 and '-'; system is the pool of the cluster's own pods."
  }

  validation {
    condition     = length(var.pools) > 0
    error_message = "pools is empty, so no node could run the server. Add a pool."
  }

  validation {
    condition     = alltrue([for pool in var.pools : can(regex("^[a-z][a-z0-9]*-[a-z0-9-]+$", pool.machine_type))])
    error_message = "pools: ${jsonencode([for pool in var.pools : pool.machine_type if !can(regex("^[a-z][a-z0-9]*-[a-z0-9-]+$", pool.machine_type))])} is no machine type. Write series, kind and size, for example \"g2-standard-8\"."
  }

  # The images are built for x86-64; t2a, c4a and n4a are Arm.
  validation {
    condition     = alltrue([for pool in var.pools : !can(regex("^(t2a|c4a|n4a|a4x)-", pool.machine_type))])
    error_message = "pools: ${jsonencode([for pool in var.pools : pool.machine_type if can(regex("^(t2a|c4a|n4a|a4x)-", pool.machine_type))])} has an Arm processor. The images of the server are for x86-64."
  }

  validation {
    condition     = alltrue([for pool in var.pools : pool.max_nodes >= 1 && pool.max_nodes <= 1000 && floor(pool.max_nodes) == pool.max_nodes])
    error_message = "pools: ${jsonencode([for name, pool in var.pools : name if pool.max_nodes < 1 || pool.max_nodes > 1000 || floor(pool.max_nodes) != pool.max_nodes])} needs a whole number of max_nodes, 1 to 1000. It is the limit of the costs."
  }

  validation {
    condition     = alltrue([for pool in var.pools : !pool.spot || can(regex("^(g2|g4|a2|a3|a4)-", pool.machine_type)) || length(pool.taints) > 0])
    error_message = "pools: ${jsonencode([for name, pool in var.pools : name if pool.spot && !can(regex("^(g2|g4|a2|a3|a4)-", pool.machine_type)) && length(pool.taints) == 0])} uses spot machines and has no taint, so pods that must not be interrupted would run there. Add taints = [{ key = \"spot\" }]."
  }

  validation {
    condition     = alltrue(flatten([for pool in var.pools : [for taint in pool.taints : contains(["NO_SCHEDULE", "PREFER_NO_SCHEDULE", "NO_EXECUTE"], taint.effect) && taint.key != "nvidia.com/gpu"]]))
    error_message = "pools: the effect of a taint is NO_SCHEDULE, PREFER_NO_SCHEDULE or NO_EXECUTE. The taint nvidia.com/gpu is set by GKE and must not be named."
  }

  validation {
    condition     = alltrue([for pool in var.pools : pool.min_replicas >= 0 && floor(pool.min_replicas) == pool.min_replicas])
    error_message = "pools: ${jsonencode([for name, pool in var.pools : name if pool.min_replicas < 0 || floor(pool.min_replicas) != pool.min_replicas])} has min_replicas that is no whole number. 0 needs KEDA (values/scale-to-zero.yaml)."
  }

  validation {
    condition     = alltrue([for pool in var.pools : pool.disk_gb >= 50 && pool.disk_gb <= 2000])
    error_message = "pools: ${jsonencode([for name, pool in var.pools : name if pool.disk_gb < 50 || pool.disk_gb > 2000])} has disk_gb outside of 50 to 2000. The disk holds the images and the cache of models."
  }
}

variable "shared_volume" {
  type        = bool
  description = "Enable the driver of Filestore, for a volume that all pods can write. The chart's mode ray needs it for the models directory. The volume itself is created by the chart and is paid for at 1 TiB at least."
  default     = false
}

variable "namespace" {
  type        = string
  description = "Kubernetes namespace of the chart's release."
  default     = "sie"

  validation {
    condition     = can(regex("^[a-z]([a-z0-9-]{0,61}[a-z0-9])?$", var.namespace))
    error_message = "namespace is ${jsonencode(var.namespace)}. A namespace has at most 63 characters of a-z, 0-9 and '-'."
  }
}

variable "release" {
  type        = string
  description = "Name of the chart's release and of its service account, the only one of the namespace that may read the bucket."
  default     = "sie"

  validation {
    condition     = can(regex("^[a-z]([a-z0-9-]{0,28}[a-z0-9])?$", var.release))
    error_message = "release is ${jsonencode(var.release)}. It has at most 30 characters of a-z, 0-9 and '-', with a letter first."
  }
}

variable "deletion_protection" {
  type        = bool
  description = "true: the cluster and a bucket with models cannot be destroyed. Apply with false before terraform destroy."
  default     = true
}

variable "labels" {
  type        = map(string)
  description = "Labels of every resource that has labels."
  default     = {}
}
