# EKS with Auto Mode: AWS runs Karpenter, the drivers of GPUs, disks and load balancers and the Pod Identity agent outside
# of the cluster, so the cluster pulls no images from public registries. The pools are in ./nodes.

module "cluster" {
  source  = "terraform-aws-modules/eks/aws"
  version = "21.19.0"

  name                = var.name
  kubernetes_version  = var.kubernetes_version
  deletion_protection = var.deletion_protection

  vpc_id                       = aws_vpc.this.id
  subnet_ids                   = [for subnet in aws_subnet.private : subnet.id]
  endpoint_private_access      = true
  endpoint_public_access       = length(var.api_cidrs) > 0
  endpoint_public_access_cidrs = length(var.api_cidrs) > 0 ? var.api_cidrs : null

  authentication_mode                      = "API"
  enable_cluster_creator_admin_permissions = true
  enable_irsa                              = false # pods get their role through Pod Identity
  enabled_log_types                        = ["api", "audit", "authenticator"]

  # The built-in pools run the pods of the cluster itself, of Prometheus and the like. They have no nodes without such pods.
  # The server's pods run in the pools of ./nodes, which have limits.
  compute_config = {
    enabled    = true
    node_pools = ["system", "general-purpose"]
  }

  addons = merge(
    {
      aws-mountpoint-s3-csi-driver = {
        pod_identity_association = [{
          role_arn        = aws_iam_role.models_reader.arn
          service_account = "s3-csi-driver-sa"
        }]
      }
    },
    var.shared_volume ? {
      aws-efs-csi-driver = {
        pod_identity_association = [{
          role_arn        = aws_iam_role.shared_volume[0].arn
          service_account = "efs-csi-controller-sa"
        }]
      }
    } : {},
  )

  tags = local.tags
}

# Every instance type must exist in at least one of the zones. The plan stops here instead of pods that wait without end.
data "aws_ec2_instance_type_offerings" "pools" {
  location_type = "availability-zone"

  filter {
    name   = "instance-type"
    values = distinct(flatten([for pool in var.pools : pool.instance_types]))
  }

  filter {
    name   = "location"
    values = var.zones
  }

  lifecycle {
    postcondition {
      condition     = length(setsubtract(flatten([for pool in var.pools : pool.instance_types]), self.instance_types)) == 0
      error_message = "pools: ${jsonencode(setsubtract(flatten([for pool in var.pools : pool.instance_types]), self.instance_types))} is not offered in ${jsonencode(var.zones)}. Choose other zones or instance types: aws ec2 describe-instance-type-offerings --location-type availability-zone"
    }
  }
}

# A pool whose limit is below the size of one node would never get a node.
data "aws_ec2_instance_type" "pools" {
  for_each      = toset(flatten([for pool in var.pools : pool.instance_types]))
  instance_type = each.key

  lifecycle {
    postcondition {
      condition     = contains(self.supported_architectures, "x86_64") && alltrue([for gpu in self.gpus : gpu.manufacturer == "NVIDIA"])
      error_message = "pools: ${self.instance_type} has an Arm processor or GPUs of another maker than NVIDIA. Choose another type."
    }

    postcondition {
      condition = alltrue([
        for pool in var.pools : pool.max_gpus > 0 ? pool.max_gpus >= sum(concat([0], [for gpu in self.gpus : gpu.count])) : pool.max_cpus >= self.default_vcpus
        if contains(pool.instance_types, self.instance_type)
      ])
      error_message = "pools: one ${self.instance_type} has ${self.default_vcpus} vCPUs and ${sum(concat([0], [for gpu in self.gpus : gpu.count]))} GPUs, more than the limit of its pool. Raise max_cpus or max_gpus, or choose a smaller type."
    }
  }
}

module "nodes" {
  source = "./nodes"

  pools             = var.pools
  node_role         = module.cluster.node_iam_role_name
  subnet_ids        = [for subnet in aws_subnet.private : subnet.id]
  security_group_id = module.cluster.cluster_primary_security_group_id
  namespace         = var.namespace
  models_bucket     = aws_s3_bucket.models.id
  region            = data.aws_region.current.region
  shared_volume_id  = one(aws_efs_file_system.shared[*].id)
  tags              = local.tags
}
