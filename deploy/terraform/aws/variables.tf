variable "name" {
  type        = string
  description = "Name of the cluster; the names of all other resources start with it."
  default     = "sie"

  validation {
    condition     = can(regex("^[a-z][a-z0-9-]{1,18}[a-z0-9]$", var.name))
    error_message = "name is ${jsonencode(var.name)}. It needs 3 to 20 characters of a-z, 0-9 and '-', with a letter first and no '-' last, because names of buckets and roles are made of it."
  }
}

variable "vpc_cidr" {
  type        = string
  description = "Private IPv4 range of the network, /16 to /20. Nodes, pods and load balancers get addresses of it."
  default     = "10.64.0.0/16"

  validation {
    condition     = can(cidrhost(var.vpc_cidr, 0)) && try(cidrhost(var.vpc_cidr, 0) == split("/", var.vpc_cidr)[0], false)
    error_message = "vpc_cidr is ${jsonencode(var.vpc_cidr)}, which is no IPv4 range. Write the first address and the length of the prefix, for example \"10.64.0.0/16\"."
  }

  validation {
    condition     = try(tonumber(split("/", var.vpc_cidr)[1]) >= 16 && tonumber(split("/", var.vpc_cidr)[1]) <= 20, false)
    error_message = "vpc_cidr is ${jsonencode(var.vpc_cidr)}. AWS allows no range larger than /16, and one smaller than /20 leaves less than 512 addresses per zone for nodes and pods. Use /16 to /20."
  }

  validation {
    condition     = can(regex("^(10\\.|172\\.(1[6-9]|2[0-9]|3[01])\\.|192\\.168\\.)", var.vpc_cidr))
    error_message = "vpc_cidr is ${jsonencode(var.vpc_cidr)}, which is not private. Use a range in 10.0.0.0/8, 172.16.0.0/12 or 192.168.0.0/16."
  }
}

variable "zones" {
  type        = list(string)
  description = "Two to four availability zones, for example [\"eu-central-1a\", \"eu-central-1b\"]. The instance types of every pool must be offered in at least one of them."

  validation {
    condition     = length(var.zones) >= 2 && length(var.zones) <= 4 && length(distinct(var.zones)) == length(var.zones)
    error_message = "zones has ${length(var.zones)} entries, ${length(distinct(var.zones))} of them different. EKS needs at least two different zones; this network has room for four."
  }
}

variable "internet_egress" {
  type        = bool
  description = "true: nodes reach the internet through a NAT gateway. false: there is no route to the internet; images come from the registry and AWS is reached through private endpoints."
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

variable "kubernetes_version" {
  type        = string
  description = "Version of Kubernetes. An upgrade goes one minor version at a time."
  default     = "1.36"

  validation {
    condition     = can(regex("^1\\.[0-9]{2}$", var.kubernetes_version))
    error_message = "kubernetes_version is ${jsonencode(var.kubernetes_version)}. Write major and minor version, for example \"1.36\"."
  }
}

variable "pools" {
  type = map(object({
    instance_types = list(string)
    max_gpus       = optional(number, 0)
    max_cpus       = optional(number, 0)
    min_replicas   = optional(number, 1)
    spot           = optional(bool, false)
    taints         = optional(list(object({ key = string, value = optional(string, "true"), effect = optional(string, "NoSchedule") })), [])
    disk_gb        = optional(number, 150)
  }))
  description = <<-EOT
    Node pools by name. Each starts at zero nodes and grows up to max_gpus (types with a GPU) or max_cpus (types without).
    A GPU pool always has the taint nvidia.com/gpu. Nodes have the label sie-pool with the name of their pool. The chart
    gets min_replicas pods at least, and one pod per GPU at most.
  EOT
  default = {
    l4 = { instance_types = ["g6.xlarge", "g6.2xlarge"], max_gpus = 4 }
  }

  validation {
    condition     = alltrue([for name, pool in var.pools : can(regex("^[a-z]([a-z0-9-]{0,28}[a-z0-9])?$", name)) && !contains(["system", "general-purpose"], name)])
    error_message = "pools has the names ${jsonencode([for name, pool in var.pools : name if !can(regex("^[a-z]([a-z0-9-]{0,28}[a-z0-9])?$", name)) || contains(["system", "general-purpose"], name)])}. A name needs at most 30 characters of a-z, 0-9 and '-'; EKS uses system and general-purpose itself."
  }

  validation {
    condition     = length(var.pools) > 0
    error_message = "pools is empty, so no node could run the server. Add a pool."
  }

  validation {
    condition     = alltrue([for pool in var.pools : length(pool.instance_types) > 0])
    error_message = "pools: ${jsonencode([for name, pool in var.pools : name if length(pool.instance_types) == 0])} has no instance_types."
  }

  validation {
    condition     = alltrue(flatten([for pool in var.pools : [for type in pool.instance_types : can(regex("^[a-z0-9-]+\\.[a-z0-9-]+$", type))]]))
    error_message = "pools: ${jsonencode(flatten([for pool in var.pools : [for type in pool.instance_types : type if !can(regex("^[a-z0-9-]+\\.[a-z0-9-]+$", type))]]))} is no instance type. Write family and size, for example \"g6.xlarge\"."
  }

  # The letter g after the generation (m7g, g5g) and gb stand for an Arm processor, g4ad has AMD's GPUs.
  validation {
    condition     = alltrue(flatten([for pool in var.pools : [for type in pool.instance_types : !can(regex("^[a-z]+[0-9]+[a-z]*g[a-z]*\\.|-gb[0-9]+\\.|^g4ad\\.", type))]]))
    error_message = "pools: ${jsonencode(flatten([for pool in var.pools : [for type in pool.instance_types : type if can(regex("^[a-z]+[0-9]+[a-z]*g[a-z]*\\.|-gb[0-9]+\\.|^g4ad\\.", type))]]))} has an Arm processor or GPUs of AMD. The images of the server are for x86-64 and NVIDIA's GPUs: choose another family."
  }

  validation {
    condition     = alltrue(flatten([for pool in var.pools : [for type in pool.instance_types : can(regex("^(g|gr|p)[0-9]", type)) == (pool.max_gpus > 0)]]))
    error_message = "pools: ${jsonencode([for name, pool in var.pools : name if !alltrue([for type in pool.instance_types : can(regex("^(g|gr|p)[0-9]", type)) == (pool.max_gpus > 0)])])}. A pool with max_gpus above 0 needs instance types with a GPU and no others (g4dn, g5, g6, g6e, gr6, p4d, p5 …), a pool without max_gpus needs types without."
  }

  validation {
    condition     = alltrue([for pool in var.pools : (pool.max_gpus > 0) != (pool.max_cpus > 0)])
    error_message = "pools: ${jsonencode([for name, pool in var.pools : name if(pool.max_gpus > 0) == (pool.max_cpus > 0)])} needs one limit: max_gpus for a pool with GPUs, max_cpus for a pool without. A pool without a limit has no limit of its costs."
  }

  validation {
    condition     = alltrue([for pool in var.pools : !pool.spot || pool.max_gpus > 0 || length(pool.taints) > 0])
    error_message = "pools: ${jsonencode([for name, pool in var.pools : name if pool.spot && pool.max_gpus == 0 && length(pool.taints) == 0])} uses spot instances and has no taint, so pods that must not be interrupted would run there. Add taints = [{ key = \"spot\" }]."
  }

  validation {
    condition     = alltrue(flatten([for pool in var.pools : [for taint in pool.taints : contains(["NoSchedule", "PreferNoSchedule", "NoExecute"], taint.effect) && taint.key != "nvidia.com/gpu"]]))
    error_message = "pools: the effect of a taint is NoSchedule, PreferNoSchedule or NoExecute. The taint nvidia.com/gpu is set by this module and must not be named."
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
  description = "Create a file system (EFS) that all pods can write. The chart's mode ray needs it for the models directory."
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
  description = "true: the cluster, a bucket with models and a registry with images cannot be destroyed. Apply with false before terraform destroy."
  default     = true
}

variable "tags" {
  type        = map(string)
  description = "Tags of every resource."
  default     = {}
}
